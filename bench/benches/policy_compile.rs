//! What policy costs in user space: everything from cold, and one changed document.
//!
//! 1,000 documents with different selectors over 500 identities, 100 of which have endpoints on the
//! node: [`Mix`]. Before the measurements it prints how much there is, and how much memory it takes.
#![allow(
    missing_docs,
    clippy::print_stdout,
    reason = "the macros of criterion; what was measured is printed"
)]

use std::cell::Cell;
use std::fs;
use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use datapath_conformance::policy::mix::Mix;
use datapath_kern::abi::endpoint::identity;
use datapath_user::policy::{Labels, PolicyEngine, PolicySettings, SubjectKey};

criterion_group!(benches, policy);
criterion_main!(benches);

fn policy(criterion: &mut Criterion) {
    let mix = Mix::new(1, 1_000, 500, 100);
    let before = resident_kib();
    let mut engine = told(&mix);
    let told_kib = resident_kib() - before;
    compile(&mut engine, &mix);
    let all_kib = resident_kib() - before;
    println!("{:?}", engine.stats());
    println!(
        "{told_kib} KiB documents, identities and what fits whom; {all_kib} KiB with the rule sets"
    );

    let mut group = criterion.benchmark_group("policy");
    group.sample_size(20);
    group.bench_function("cold", |bencher| {
        bencher.iter_batched(
            || mix.clone(),
            |mix| {
                let mut engine = told(&mix);
                compile(&mut engine, &mix);
                engine
            },
            BatchSize::PerIteration,
        );
    });
    let mut round = 0_usize;
    group.bench_function("one document", |bencher| {
        bencher.iter_batched(
            || {
                round += 1;
                let mut documents = mix.documents.iter().cycle();
                let chosen = documents.nth(round * 7 % mix.documents.len());
                Mix::edited(chosen.expect("there are documents"), round as u64)
            },
            |document| {
                let changed = engine.upsert(document);
                let local = mix
                    .endpoints
                    .iter()
                    .map(|&number| SubjectKey::Identity(number));
                for subject in local.filter(|subject| changed.contains(*subject)) {
                    black_box(engine.rules_for(&subject));
                }
            },
            BatchSize::PerIteration,
        );
    });
    let next = Cell::new(identity::FIRST_ALLOCATED + 10_000);
    group.bench_function("one identity", |bencher| {
        bencher.iter_batched(
            || {
                let number = next.get() + 1;
                next.set(number);
                let mut identities = mix.identities.iter().cycle();
                let (_, labels) = identities
                    .nth(number as usize % 500)
                    .expect("there are pods");
                (number, labels.clone())
            },
            |(number, labels)| {
                let changed = engine.set_identity(number, labels);
                let local = mix
                    .endpoints
                    .iter()
                    .map(|&number| SubjectKey::Identity(number));
                for subject in local.filter(|subject| changed.contains(*subject)) {
                    black_box(engine.rules_for(&subject));
                }
                let _ = engine.remove_identity(number);
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

/// An engine that knows everything and has compiled nothing.
fn told(mix: &Mix) -> PolicyEngine {
    let mut engine = PolicyEngine::new(PolicySettings::default());
    for (number, labels) in &mix.identities {
        let _ = engine.set_identity(*number, labels.clone());
    }
    for document in &mix.documents {
        let _ = engine.upsert(document.clone());
    }
    for (number, prefix) in (identity::FIRST_LOCAL..).zip(engine.prefixes()) {
        let _ = engine.set_identity(number, Labels::cidr(prefix));
    }
    engine
}

fn compile(engine: &mut PolicyEngine, mix: &Mix) {
    for &number in &mix.endpoints {
        black_box(engine.rules_for(&SubjectKey::Identity(number)));
    }
}

/// Memory of this process, in KiB: `/proc/self/statm` counts in pages.
fn resident_kib() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").expect("/proc is mounted");
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    let pages: u64 = pages.expect("the second number is that of resident pages");
    pages * 4
}
