//! What a change of the split does to the clients of the versions that lose by it: `evict`, `drain` or `freeze`.

use crate::config::OnDecrease;
use crate::decide::{Hold, Policy, Split};
use crate::state::clock::millis;

/// The holds beside `after`, in its order. `before` is what was in force; `rule_before` its service's own rule, `rule`
/// the one for this change.
pub(super) fn next_holds(
    before: Option<&Policy>,
    rule_before: Option<OnDecrease>,
    after: &Split,
    rule: OnDecrease,
    now: u64,
) -> Vec<Hold> {
    let Some(before) = before else { return vec![Hold::None; after.len()] };
    let (old, changes) = (&before.split, is_changed(&before.split, after));
    let hold = |version: usize| {
        let name = after.name(version);
        let at = (0..old.len()).find(|at| old.name(*at) == name);
        let kept = match at.and_then(|at| before.holds.get(at).copied()) {
            Some(Hold::Until(deadline)) if deadline <= now => Hold::None,
            Some(hold) => hold,
            None => Hold::None,
        };
        if !changes && rule_before == Some(rule) {
            return kept;
        }
        let fell = changes
            && match (after.weight(version), at.and_then(|at| old.weight(at))) {
                (Some(now), Some(earlier)) => now.is_smaller_share(after.sum(), earlier, old.sum()),
                _ => false,
            };
        match rule {
            OnDecrease::Evict => Hold::None,
            OnDecrease::Drain { deadline } => {
                let deadline = now.saturating_add(millis(deadline));
                match kept {
                    Hold::Until(earlier) => Hold::Until(if fell { deadline.max(earlier) } else { earlier }),
                    Hold::Frozen => Hold::Until(deadline),
                    Hold::None if fell => Hold::Until(deadline),
                    Hold::None => Hold::None,
                }
            }
            OnDecrease::Freeze if fell => Hold::Frozen,
            OnDecrease::Freeze => kept,
        }
    };
    (0..after.len()).map(hold).collect()
}

/// The first deadline among `holds`.
pub(super) fn next_deadline(holds: &[Hold]) -> Option<u64> {
    let deadline = |hold: &Hold| match hold {
        Hold::Until(deadline) => Some(*deadline),
        Hold::None | Hold::Frozen => None,
    };
    holds.iter().filter_map(deadline).min()
}

fn is_changed(before: &Split, after: &Split) -> bool {
    let names = |split: &Split| (0..split.len()).map(|v| split.name(v).cloned()).collect::<Vec<_>>();
    before.weights() != after.weights() || names(before) != names(after)
}
