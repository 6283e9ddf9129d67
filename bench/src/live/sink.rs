//! Counts frames and drops them.

use std::{collections::BTreeSet, fmt};

use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray},
};
use datapath_conformance::netns::Namespace;

use super::{
    assembly::{self as asm, Instruction},
    classifier,
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
/// and dropped. Everything else passes. Dropping it takes it off the interface.
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
    /// Attaches one for frames of these lengths, Ethernet header included.
    ///
    /// # Errors
    ///
    /// [`Error::Assemble`], [`Error::Load`] and [`Error::Program`] for what the kernel refuses.
    pub fn attach(
        namespace: &Namespace,
        interface: &str,
        lengths: &BTreeSet<usize>,
    ) -> Result<Self> {
        let definition = asm::MapDefinition {
            name: COUNTER,
            kind: PERCPU_ARRAY,
            key_bytes: 4,
            value_bytes: 8,
            entries: 1,
        };
        let code = instructions(lengths);
        let mut ebpf = classifier::attach(PROGRAM, &code, Some(definition), namespace, interface)?;
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

/// The program: compares `len` of `struct __sk_buff`, its first field, and counts.
fn instructions(lengths: &BTreeSet<usize>) -> Vec<Instruction> {
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
        asm::set(0, DROP),
        asm::exit(),
    ]);
    code
}
