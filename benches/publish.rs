//! Building and publishing a snapshot of 10,000 endpoints: `cargo bench --bench publish`. The goal: 50 ms.

mod common;

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use perch::config::Config;
use perch::decide::reweigh::Amount;
use perch::state::model::{Change, Model, Names};
use perch::state::publish::Published;

fn model(config: Config) -> Model {
    Model::new(config, Names::new(), 0).expect("it builds")
}

fn publish(bench: &mut Criterion) {
    // One service of 10,000, and 100 services of 100.
    for (shape, services, endpoints) in [("1 service", 1, 5_000), ("100 services", 100, 50)] {
        let config = common::config(services, endpoints);
        let mut group = bench.benchmark_group(format!("10,000 endpoints in {shape}"));
        group.sample_size(20);

        group.bench_function("first", |b| {
            b.iter_batched(|| config.clone(), |c| Published::new(model(c).snapshot().clone()), BatchSize::LargeInput);
        });
        group.bench_function("every endpoint replaced", |b| {
            let mut others = config.clone();
            for version in others.services.iter_mut().flat_map(|s| &mut s.versions) {
                for endpoint in &mut version.endpoints {
                    if let perch::config::EndpointAddress::Ip(address) = endpoint {
                        address.set_port(81);
                    }
                }
            }
            b.iter_batched(
                || (model(config.clone()), others.clone()),
                |(mut model, others)| {
                    let published = Published::new(model.snapshot().clone());
                    model.configure(others, Names::new(), 0).expect("it builds");
                    published.store(model.snapshot().clone());
                    (model, published)
                },
                BatchSize::LargeInput,
            );
        });
        group.bench_function("one weight", |b| {
            let mut model = model(config.clone());
            let published = Published::new(model.snapshot().clone());
            let mut percent = 0;
            b.iter(|| {
                percent = percent % 99 + 1;
                let amount = Amount::percent(f64::from(percent)).expect("a share");
                let amounts = vec![("canary".to_owned(), amount)];
                model.change(&Change::weights("service-0", amounts, "bench"), 0).expect("it is set");
                published.store(model.snapshot().clone());
                black_box(&published);
            });
        });
    }
}

criterion_group!(benches, publish);
criterion_main!(benches);
