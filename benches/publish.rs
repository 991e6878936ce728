//! Building and publishing a snapshot of 10,000 endpoints: `cargo bench --bench publish`. The goal: 50 ms.

mod common;

use std::cell::RefCell;
use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use perch::config::Config;
use perch::decide::reweigh::Amount;
use perch::state::model::{Change, Model, Names};
use perch::state::publish::{Published, Retired};

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
                    drop(published.store(model.snapshot().clone()));
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
                drop(published.store(model.snapshot().clone()));
                black_box(&published);
            });
        });
        // What the first request after a publication pays: alone, and with a writer that frees what was before.
        for (name, is_freed_here) in [("next request, freeing", true), ("next request", false)] {
            group.bench_function(name, |b| {
                let model = RefCell::new(model(config.clone()));
                let published = Published::new(model.borrow().snapshot().clone());
                let (mut reader, mut retired) = (published.reader(), Retired::default());
                reader.load();
                let change_one = || {
                    let mut model = model.borrow_mut();
                    let mut next = (*model.snapshot().config).clone();
                    let version = next.services.first_mut().and_then(|s| s.versions.first_mut());
                    if let Some(perch::config::EndpointAddress::Ip(address)) =
                        version.and_then(|v| v.endpoints.first_mut())
                    {
                        address.set_port(address.port() ^ 1);
                    }
                    model.configure(next, Names::new(), 0).expect("it builds");
                    drop(model.take_leaving());
                    let before = published.store(model.snapshot().clone());
                    if !is_freed_here {
                        retired.sweep();
                        retired.put(before);
                    }
                };
                b.iter_batched(change_one, |()| black_box(reader.load().generation), BatchSize::PerIteration);
            });
        }
    }
}

criterion_group!(benches, publish);
criterion_main!(benches);
