//! Sends made-up frames into an interface.

use std::time::Duration;

use aya::{
    Ebpf,
    maps::Array,
    programs::{TestRun, TestRunAttrs, TestRunOptions, Xdp},
};
use datapath_conformance::netns::Namespace;

use super::{Template, assembly as asm};
use crate::error::{Error, Result};

const PROGRAM: &str = "generator";
/// The map with the number of the next flow.
const NEXT: &str = "next";
/// Frames that the kernel handles at once.
const BATCH: u32 = 64;
/// Length of `struct xdp_md` (include/uapi/linux/bpf.h).
const CONTEXT_BYTES: usize = 24;
/// `BPF_MAP_TYPE_ARRAY`.
const ARRAY: u32 = 2;
/// Where the key of the map is on the stack.
const CELL: i16 = -4;
/// Helper `bpf_get_prandom_u32`.
const GET_PRANDOM_U32: i32 = 7;
/// `XDP_PASS`: into the network stack.
const XDP_PASS: i32 = 2;
/// `XDP_DROP`.
const XDP_DROP: i32 = 1;

/// Which flow of a [`Template`] a frame is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Any, drawn anew for each frame.
    Random,
    /// The one after that of the frame before, from the first; the first again after the last. For
    /// one thread at a time.
    Next,
}

/// A source of frames, each of a flow of a [`Template`], written anew from the first byte to the
/// last. The kernel uses the memory of a frame again without cleaning it.
#[derive(Debug)]
pub struct Generator {
    ebpf: Ebpf,
    name: String,
    interface: u32,
    template: Template,
}

impl Generator {
    /// Makes one for an interface that frames are to arrive on, which draws flows at random.
    ///
    /// # Errors
    ///
    /// [`Error::Lab`] where there is no such interface, [`Error::Assemble`], [`Error::Load`] and
    /// [`Error::Program`] for what the kernel refuses.
    pub fn new(namespace: &Namespace, interface: &str, template: Template) -> Result<Self> {
        Self::ordered(namespace, interface, template, Order::Random)
    }

    /// Makes one for an interface that frames are to arrive on.
    ///
    /// # Errors
    ///
    /// As [`Generator::new`].
    pub fn ordered(
        namespace: &Namespace,
        interface: &str,
        template: Template,
        order: Order,
    ) -> Result<Self> {
        let link = namespace.link(interface)?;
        let cell = (order == Order::Next).then_some(asm::MapDefinition {
            name: NEXT,
            kind: ARRAY,
            key_bytes: 4,
            value_bytes: 8,
            entries: 1,
        });
        let code = instructions(&template, order);
        let file = asm::file("xdp", PROGRAM, &code, cell).map_err(|source| Error::Assemble {
            program: PROGRAM,
            source,
        })?;
        let mut ebpf = Ebpf::load(&file).map_err(|source| Error::Load {
            program: PROGRAM,
            source: Box::new(source),
        })?;
        let program: &mut Xdp = ebpf
            .program_mut(PROGRAM)
            .and_then(|program| program.try_into().ok())
            .ok_or(MISSING)?;
        program
            .load()
            .map_err(Error::program("verify", PROGRAM, interface))?;
        Ok(Self {
            ebpf,
            name: interface.to_owned(),
            interface: link.index,
            template,
        })
    }

    /// What it sends.
    #[must_use]
    pub fn template(&self) -> &Template {
        &self.template
    }

    /// Makes a flow the next one, counted from 0, of a generator that sends them [in
    /// order](Order::Next).
    ///
    /// # Errors
    ///
    /// [`Error::Incomplete`] where it draws them at random, [`Error::Counter`] for what the kernel
    /// refuses.
    pub fn seek(&mut self, flow: u64) -> Result<()> {
        let map = self.ebpf.map_mut(NEXT).ok_or(Error::Incomplete {
            program: PROGRAM,
            missing: "order of flows",
        })?;
        Array::try_from(map)
            .and_then(|mut next| next.set(0, flow, 0))
            .map_err(|source| Error::Counter {
                interface: self.name.clone(),
                source: Box::new(source),
            })
    }

    /// Sends frames and returns how long that took by the kernel's own clock, to nanoseconds per
    /// frame. What the kernel prepares before, and clears up after, is not among it: some ten
    /// milliseconds, of which it sleeps most. To be called in the interface's namespace, on
    /// a thread that is pinned to a CPU: the frames are handled there, as far as it goes.
    ///
    /// # Errors
    ///
    /// [`Error::Program`] with what the kernel says.
    pub fn send(&self, frames: u32) -> Result<Duration> {
        let program: &Xdp = self
            .ebpf
            .program(PROGRAM)
            .and_then(|program| program.try_into().ok())
            .ok_or(MISSING)?;
        let bytes = &self.template.bytes;
        let mut context = [0; CONTEXT_BYTES];
        // data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let data_end = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let fields = [0, data_end, 0, self.interface, 0, 0];
        for (bytes, field) in context.chunks_exact_mut(4).zip(fields) {
            bytes.copy_from_slice(&field.to_ne_bytes());
        }
        let outcome = program.test_run(TestRunOptions {
            data_in: Some(bytes),
            ctx_in: Some(&context),
            repeat: frames,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::new()
        });
        let result = outcome.map_err(Error::program("run", PROGRAM, &self.name))?;
        Ok(result.duration * frames)
    }
}

const MISSING: Error = Error::Incomplete {
    program: PROGRAM,
    missing: "XDP program",
};

/// The program: draws a flow, or takes the next one, and writes the whole frame.
fn instructions(template: &Template, order: Order) -> Vec<asm::Instruction> {
    let at = |offset: usize| i16::try_from(offset).unwrap_or(i16::MAX);
    let number = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
    let length = i32::try_from(template.len()).unwrap_or(i32::MAX);
    let (data, end, limit, balance) = (2, 3, 4, 5);
    let (context, port, address) = (6, 7, 8);
    let mut code = vec![asm::copy(context, 1)];
    match order {
        Order::Random => code.push(asm::call(GET_PRANDOM_U32)),
        Order::Next => {
            code.extend(asm::cell(CELL));
            code.extend([
                asm::skip_unless_equal(0, 0, 2),
                asm::set(0, XDP_DROP),
                asm::exit(),
                asm::load_64(1, 0, 0),
                asm::copy(2, 1),
                asm::add(2, 1),
                asm::store_64(0, 0, 2),
                asm::copy(0, 1),
            ]);
        }
    }
    code.extend([
        asm::remainder(0, number(template.flows)),
        asm::copy(port, 0),
        asm::divide(port, template.destinations.into()),
        asm::add(port, template.first_port.into()),
        asm::network_16(port),
        asm::load_32(data, context, 0),
        asm::load_32(end, context, 4),
        asm::copy(limit, data),
        asm::add(limit, length),
    ]);
    let many = template.destinations > 1;
    if many {
        code.extend([
            asm::copy(address, 0),
            asm::remainder(address, template.destinations.into()),
            asm::add(address, template.first_address.into()),
            asm::network_16(address),
        ]);
    }
    let mut writes = Vec::new();
    let mut words = template.bytes.chunks_exact(4);
    let mut offset = 0;
    for word in words.by_ref() {
        let word = word.try_into().unwrap_or_default();
        writes.push(asm::store_bytes(data, at(offset), word));
        offset += 4;
    }
    for (&byte, offset) in words.remainder().iter().zip(offset..) {
        writes.push(asm::store_byte(data, at(offset), byte));
    }
    let mut put = |value, value_at, balances: &[Option<usize>]| {
        writes.push(asm::store_16(data, at(value_at), value));
        writes.extend([asm::copy(balance, value), asm::xor(balance, 0xffff)]);
        let balances = balances.iter().flatten();
        writes.extend(balances.map(|&offset| asm::store_16(data, at(offset), balance)));
    };
    put(port, template.port_at, &[Some(template.balance_at)]);
    if many {
        let balances = [Some(template.balance_at + 2), template.identification_at];
        put(address, template.address_at, &balances);
    }
    writes.extend([asm::set(0, XDP_PASS), asm::exit()]);
    code.push(asm::skip_if_above(limit, end, at(writes.len())));
    code.extend(writes);
    code.extend([asm::set(0, XDP_DROP), asm::exit()]);
    code
}
