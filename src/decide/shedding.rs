//! What perch gives up as its memory runs short, step by step: first connections that wait for nothing, then new requests,
//! then new connections. What is under way is never among it: it ends by its own deadlines.

/// How far it has come; each step has all before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shedding {
    #[default]
    Nothing,
    /// Idle connections are closed, answers are the last on theirs, spare buffers and endpoint connections go.
    KeepAlive,
    /// New requests are refused.
    Requests,
    /// New connections are closed at once.
    Connections,
}

/// Steps and the percentage of the ceiling at which each begins. Envoy's examples have 95 and 99 % of a heap; here they
/// begin earlier, as what they do costs little, and a burst may need the rest before the next look.
const BEGINS: [(Shedding, u64); 3] = [(Shedding::KeepAlive, 80), (Shedding::Requests, 90), (Shedding::Connections, 95)];

/// A step ends so many percent lower than it began, so that it doesn't flap.
const SLACK: u64 = 5;

impl Shedding {
    /// The step at this use of memory, after the one before.
    #[must_use]
    pub fn next(self, used: u64, ceiling: u64) -> Self {
        let is_over = |percent: u64| u128::from(used) * 100 >= u128::from(ceiling) * u128::from(percent);
        let is_on = |step: Self, percent: u64| is_over(if step <= self { percent - SLACK } else { percent });
        BEGINS
            .into_iter()
            .filter(|(step, percent)| is_on(*step, *percent))
            .map(|(step, _)| step)
            .max()
            .unwrap_or_default()
    }

    /// Whether memory that is only kept for later should be given up first, to see how much is really needed.
    #[must_use]
    pub fn is_near(used: u64, ceiling: u64) -> bool {
        Self::KeepAlive.next(used, ceiling) != Self::Nothing
    }

    /// The word for the log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::KeepAlive => "keep-alive",
            Self::Requests => "requests",
            Self::Connections => "connections",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn steps(used: &[u64]) -> Vec<Shedding> {
        used.iter()
            .scan(Shedding::Nothing, |step, used| {
                *step = step.next(*used, 1_000);
                Some(*step)
            })
            .collect()
    }

    #[test]
    fn each_step_begins_at_its_part_of_the_ceiling_and_ends_lower() {
        use Shedding::{Connections, KeepAlive, Nothing, Requests};

        assert_eq!(
            steps(&[799, 800, 899, 900, 949, 950]),
            [Nothing, KeepAlive, KeepAlive, Requests, Requests, Connections]
        );
        assert_eq!(
            steps(&[950, 900, 899, 850, 849, 750, 749, 799]),
            [Connections, Connections, Requests, Requests, KeepAlive, KeepAlive, Nothing, Nothing]
        );
    }

    #[test]
    fn a_burst_takes_several_steps_at_once_and_its_end_too() {
        assert_eq!(steps(&[2_000, 0]), [Shedding::Connections, Shedding::Nothing]);
    }

    proptest! {
        #[test]
        fn more_memory_never_means_less_shedding(used: u64, more: u64, ceiling: u64) {
            for before in [Shedding::Nothing, Shedding::KeepAlive, Shedding::Requests, Shedding::Connections] {
                let (less, more) = (before.next(used, ceiling), before.next(used.saturating_add(more), ceiling));
                prop_assert!(less <= more);
                prop_assert_eq!(less, less.next(used, ceiling), "it is settled after one look");
            }
        }
    }
}
