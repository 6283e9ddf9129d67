//! The GENEVE codec: a header without options, and one with three.
#![allow(missing_docs, reason = "the macros of criterion")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use datapath_tunnel::geneve::{ETHERTYPE_TEB, Opt, Options, Packet, Repr, Vni};

fn geneve(criterion: &mut Criterion) {
    let vni = Vni::new(77).expect("77 is a VNI");
    let option = |kind| Opt::new(0x0102, kind, &[1, 2, 3, 4]).expect("four bytes are an option");
    let three = [option(1), option(2), option(3)];
    for (name, options) in [("plain", &three[..0]), ("three options", &three[..])] {
        let options = Options::new(options).expect("few options fit");
        let repr = Repr {
            vni,
            protocol: ETHERTYPE_TEB,
            control: false,
            options,
        };
        let mut bytes = vec![0; repr.buffer_len() + 64];
        let mut group = criterion.benchmark_group(format!("geneve/{name}"));
        group.bench_function("emit", |bench| {
            bench.iter(|| black_box(&repr).emit(black_box(&mut bytes)).is_ok());
        });
        repr.emit(&mut bytes).expect("the buffer has room");
        group.bench_function("parse", |bench| {
            bench.iter(|| {
                let packet = Packet::new_checked(black_box(&bytes[..])).expect("just emitted");
                Repr::parse(&packet).map(|repr| repr.vni).is_ok()
            });
        });
        group.finish();
    }
}

criterion_group!(benches, geneve);
criterion_main!(benches);
