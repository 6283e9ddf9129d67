//! Counts frames, and drops them or lets them go.

use std::{collections::BTreeSet, fmt};

use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray},
};
use datapath_conformance::netns::Namespace;

use super::{
    assembly::{self as asm, Instruction},
    classifier::{self, Way},
};
use crate::error::{Error, Result};

const PROGRAM: &str = "sink";
const COUNTER: &str = "counter";
/// `BPF_MAP_TYPE_PERCPU_ARRAY`.
const PERCPU_ARRAY: u32 = 6;
/// `TCX_NEXT` and `TC_ACT_UNSPEC`: others decide.
const NEXT: i32 = -1;
/// `TCX_DROP` and `TC_ACT_SHOT`.
const DROP: i32 = 2;

/// The end of made-up frames: on arriving at an interface, those of certain lengths are counted
/// and dropped. Everything else passes. On leaving by an interface they are counted only, and go
/// on. Dropping it takes it off the interface.
///
/// It is a tcx program, not XDP: what `bpf_redirect_peer` brings meets no XDP.
pub struct Sink {
    // Keeps the program attached.
    _ebpf: Ebpf,
    counter: PerCpuArray<MapData, u64>,
    interface: String,
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sink")
            .field("interface", &self.interface)
            .finish_non_exhaustive()
    }
}

impl Sink {
    /// Attaches one for arriving frames of these lengths, Ethernet header included.
    ///
    /// # Errors
    ///
    /// [`Error::Assemble`], [`Error::Load`] and [`Error::Program`] for what the kernel refuses.
    pub fn attach(
        namespace: &Namespace,
        interface: &str,
        lengths: &BTreeSet<usize>,
    ) -> Result<Self> {
        Self::at(namespace, interface, Way::Arriving, lengths)
    }

    /// Attaches one for leaving frames of these lengths, Ethernet header included, which are
    /// counted on their way to the interface's queue. Whether that has room for them is not told.
    ///
    /// # Errors
    ///
    /// As [`Sink::attach`].
    pub fn count_leaving(
        namespace: &Namespace,
        interface: &str,
        lengths: &BTreeSet<usize>,
    ) -> Result<Self> {
        Self::at(namespace, interface, Way::Leaving, lengths)
    }

    fn at(
        namespace: &Namespace,
        interface: &str,
        way: Way,
        lengths: &BTreeSet<usize>,
    ) -> Result<Self> {
        let definition = asm::MapDefinition {
            name: COUNTER,
            kind: PERCPU_ARRAY,
            key_bytes: 4,
            value_bytes: 8,
            entries: 1,
        };
        let verdict = match way {
            Way::Arriving => DROP,
            Way::Leaving => NEXT,
        };
        let code = instructions(lengths, verdict);
        let map = Some(definition);
        let mut ebpf = classifier::attach(PROGRAM, &code, map, namespace, interface, way)?;
        let counter = ebpf.take_map(COUNTER).ok_or(Error::Incomplete {
            program: PROGRAM,
            missing: "counter",
        })?;
        let counter = PerCpuArray::try_from(counter).map_err(|source| Error::Counter {
            interface: interface.to_owned(),
            source: Box::new(source),
        })?;
        Ok(Self {
            _ebpf: ebpf,
            counter,
            interface: interface.to_owned(),
        })
    }

    /// How many frames it has taken so far, on all CPUs.
    ///
    /// # Errors
    ///
    /// [`Error::Counter`].
    pub fn taken(&self) -> Result<u64> {
        let cpus = self.counter.get(&0, 0).map_err(|source| Error::Counter {
            interface: self.interface.clone(),
            source: Box::new(source),
        })?;
        Ok(cpus.iter().sum())
    }
}

/// The program: compares `len` of `struct __sk_buff`, its first field, and counts; `verdict` is
/// what becomes of those that it counts.
fn instructions(lengths: &BTreeSet<usize>, verdict: i32) -> Vec<Instruction> {
    let mut code = vec![asm::load_32(2, 1, 0)];
    for (left, &length) in (0..lengths.len()).rev().zip(lengths) {
        // Over the comparisons that are left, and over the way out for everything else.
        let over = i16::try_from(left + 2).unwrap_or(i16::MAX);
        let length = i32::try_from(length).unwrap_or(i32::MAX);
        code.push(asm::skip_if_equal(2, length, over));
    }
    code.extend([asm::set(0, NEXT), asm::exit()]);
    code.extend(asm::cell(-4));
    code.extend([
        asm::skip_if_equal(0, 0, 3),
        asm::load_64(1, 0, 0),
        asm::add(1, 1),
        asm::store_64(0, 0, 1),
        asm::set(0, verdict),
        asm::exit(),
    ]);
    code
}
