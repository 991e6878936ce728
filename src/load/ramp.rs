//! Movement between the steps of a ramp: who changed sides, and whether the change of weights explains it.
//!
//! Pure. Raising a version's share may move clients only to it, lowering it only away from it, and no more of them than
//! the share changed by: the least movement there is.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::outcome::{Direction, Moves};
use super::tally::{Client, Seen};
use super::verdict::{Finding, grouped, percent};
use super::version::VersionId;
use crate::decide::stats::binomial_p;

/// The change of the ramped version's share.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    pub version: VersionId,
    pub from: f64,
    pub to: f64,
}

impl Change {
    /// Whether a client may go from one version to another because of it.
    fn explains(self, from: VersionId, to: VersionId) -> bool {
        if self.to > self.from { to == self.version } else { self.to < self.from && from == self.version }
    }
}

/// The movement that `clients` made at their first request after a change, and what is to be said about it.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
pub fn judge(clients: &[Client], names: &[Arc<str>], change: Change, alpha: f64) -> (Moves, Vec<Finding>) {
    let mut both = 0_u64;
    let mut directions: BTreeMap<(VersionId, VersionId), u64> = BTreeMap::new();
    for client in clients {
        if let (Some(before), Some(after)) = (client.before.map(Seen::version), client.first.map(Seen::version)) {
            both += 1;
            if before != after {
                *directions.entry((before, after)).or_default() += 1;
            }
        }
    }
    let moved: u64 = directions.values().sum();
    let unexplained: u64 = directions.iter().filter(|((f, t), _)| !change.explains(*f, *t)).map(|(_, n)| n).sum();
    let fewest = (change.to - change.from).abs();
    let name = |id: VersionId| names.get(id.index()).map_or_else(|| "?".into(), Arc::clone);
    let target = name(change.version);
    let way = if change.to > change.from {
        format!("only to {target}")
    } else if change.to < change.from {
        format!("only away from {target}")
    } else {
        "not at all".to_owned()
    };
    let statement = if unexplained == 0 {
        format!("{} of {} clients moved, {way}", grouped(moved), grouped(both))
    } else {
        format!("{} of {} clients moved otherwise than {way}", grouped(unexplained), grouped(both))
    };
    let direction = Finding { n: Some(both), ..Finding::plain("direction", unexplained == 0, statement) };
    let p = binomial_p(moved, both, fewest);
    let share = if both == 0 { 0.0 } else { moved as f64 / both as f64 };
    let movement = Finding {
        version: Some(target.to_string()),
        expected: Some(fewest),
        seen: Some(share),
        n: Some(both),
        p_value: Some(p),
        test: Some("exact-binomial"),
        ..Finding::plain(
            "movement",
            p >= alpha,
            format!("{} of the clients moved; the share changed by {} (p = {p:.4})", percent(share), percent(fewest)),
        )
    };
    let moves = Moves {
        clients: both,
        moved,
        unexplained,
        fewest,
        by_direction: directions
            .into_iter()
            .map(|((f, t), clients)| Direction {
                from: name(f),
                to: name(t),
                clients,
                explained: change.explains(f, t),
            })
            .collect(),
    };
    (moves, vec![direction, movement])
}

#[cfg(test)]
mod tests {
    use super::*;

    const STABLE: VersionId = VersionId(0);
    const CANARY: VersionId = VersionId(1);

    fn clients(moves: &[(VersionId, VersionId, usize)]) -> Vec<Client> {
        let one = |before, after| {
            let mut client = Client::default();
            client.serve(before);
            client.next_step();
            client.serve(after);
            client
        };
        moves.iter().flat_map(|(before, after, n)| std::iter::repeat_n(one(*before, *after), *n)).collect()
    }

    fn judged(clients: &[Client], from: f64, to: f64) -> (bool, bool) {
        let names = ["stable".into(), "canary".into()];
        let (_, findings) = judge(clients, &names, Change { version: CANARY, from, to }, 0.001);
        (findings[0].holds, findings[1].holds)
    }

    #[test]
    fn moving_to_the_version_that_was_raised_is_right() {
        let clients = clients(&[(STABLE, STABLE, 900), (STABLE, CANARY, 52), (CANARY, CANARY, 48)]);

        assert_eq!(judged(&clients, 0.05, 0.10), (true, true));
    }

    #[test]
    fn one_client_in_the_wrong_direction_is_noticed() {
        let clients =
            clients(&[(STABLE, STABLE, 900), (STABLE, CANARY, 52), (CANARY, CANARY, 47), (CANARY, STABLE, 1)]);

        assert_eq!(judged(&clients, 0.05, 0.10), (false, true));
    }

    #[test]
    fn moving_more_than_the_share_changed_is_noticed() {
        let clients = clients(&[(STABLE, STABLE, 800), (STABLE, CANARY, 200)]);

        assert_eq!(judged(&clients, 0.05, 0.10), (true, false));
    }

    #[test]
    fn without_a_change_nobody_moves() {
        assert_eq!(judged(&clients(&[(STABLE, STABLE, 90), (CANARY, CANARY, 10)]), 0.1, 0.1), (true, true));
        assert_eq!(judged(&clients(&[(STABLE, CANARY, 1), (CANARY, CANARY, 10)]), 0.1, 0.1), (false, false));
    }

    #[test]
    fn emptying_moves_everybody_who_was_there() {
        let clients = clients(&[(STABLE, STABLE, 750), (CANARY, STABLE, 250)]);

        assert_eq!(judged(&clients, 0.25, 0.0), (true, true));
    }
}
