//! What no guard can do better, to tell a limit from a weakness: how often twice the errors show within 2,000 requests to
//! somebody who knows everything but the answer. The column "at best" of docs/rollouts.md.

/// Requests of the canary.
const REQUESTS: f64 = 2_000.0;

/// The chance of 0, 1, 2, ... failures.
fn failures(mean: f64) -> Vec<f64> {
    let mut chances = vec![(-mean).exp()];
    for n in 1..400 {
        chances.push(chances[n - 1] * mean / n as f64);
    }
    chances
}

/// One look, after the last request, by who knows the usual error rate: the most powerful test (Neyman and Pearson, 1933).
fn single_look(errors: f64, factor: f64, false_aborts: f64) -> f64 {
    let (usual, worse) = (failures(REQUESTS * errors), failures(REQUESTS * errors * factor));
    let tail = |chances: &[f64], from: usize| chances[from..].iter().sum::<f64>();
    let from = (0..usual.len()).find(|from| tail(&usual, *from) <= false_aborts).unwrap();
    tail(&worse, from)
}

/// Looks all the time, by who knows both error rates: Wald's sequential test, the fastest on average.
fn oracle(errors: f64, factor: f64, false_aborts: f64) -> f64 {
    let per_look = REQUESTS / 100.0;
    let in_a_look = failures(per_look * errors * factor);
    let (mut caught, mut undecided) = (0.0, vec![1.0]);
    for look in 1..=100 {
        let mut next = vec![0.0; 400];
        for (before, chance) in undecided.iter().enumerate() {
            for (more, chance_of_more) in in_a_look.iter().enumerate().take(20).take_while(|(n, _)| before + n < 400) {
                next[before + more] += chance * chance_of_more;
            }
        }
        let money = |n: usize| n as f64 * factor.ln() - f64::from(look) * per_look * errors * (factor - 1.0);
        for chance in next.iter_mut().enumerate().filter(|(n, _)| money(*n) >= -false_aborts.ln()).map(|(_, c)| c) {
            caught += std::mem::take(chance);
        }
        undecided = next;
    }
    caught
}

#[test]
fn twice_the_errors_at_one_percent_show_within_2000_requests_to_nobody_always() {
    for errors in [0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.025, 0.05] {
        let (once, always) = (single_look(errors, 2.0, 0.01), oracle(errors, 2.0, 0.01));
        println!("errors {errors} x2: {:.1}% in one look, {:.1}% by an oracle", 100.0 * once, 100.0 * always);
    }

    assert!((single_look(0.01, 2.0, 0.01) - 0.914).abs() < 0.002);
    assert!((oracle(0.01, 2.0, 0.01) - 0.834).abs() < 0.002);
    assert!(single_look(0.02, 2.0, 0.01) > 0.99);
}
