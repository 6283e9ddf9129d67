//! Sends made-up frames into an interface.

use std::time::{Duration, Instant};

use aya::{
    Ebpf,
    programs::{TestRun, TestRunAttrs, TestRunOptions, Xdp},
};
use datapath_conformance::netns::Namespace;

use super::{Template, assembly as asm};
use crate::error::{Error, Result};

const PROGRAM: &str = "generator";
/// Frames that the kernel handles at once.
const BATCH: u32 = 64;
/// Length of `struct xdp_md` (include/uapi/linux/bpf.h).
const CONTEXT_BYTES: usize = 24;
/// Helper `bpf_get_prandom_u32`.
const GET_PRANDOM_U32: i32 = 7;
/// `XDP_PASS`: into the network stack.
const XDP_PASS: i32 = 2;
/// `XDP_DROP`.
const XDP_DROP: i32 = 1;

/// A source of frames: each of a flow drawn at random, from a [`Template`], written anew from the
/// first byte to the last. The kernel uses the memory of a frame again without cleaning it.
#[derive(Debug)]
pub struct Generator {
    ebpf: Ebpf,
    name: String,
    interface: u32,
    template: Template,
}

impl Generator {
    /// Makes one for an interface that frames are to arrive on.
    ///
    /// # Errors
    ///
    /// [`Error::Lab`] where there is no such interface, [`Error::Assemble`], [`Error::Load`] and
    /// [`Error::Program`] for what the kernel refuses.
    pub fn new(namespace: &Namespace, interface: &str, template: Template) -> Result<Self> {
        let link = namespace.link(interface)?;
        let file = asm::file("xdp", PROGRAM, &instructions(&template), None).map_err(|source| {
            Error::Assemble {
                program: PROGRAM,
                source,
            }
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

    /// Sends frames and returns how long that took. To be called in the interface's namespace, on
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
        let start = Instant::now();
        let outcome = program.test_run(TestRunOptions {
            data_in: Some(bytes),
            ctx_in: Some(&context),
            repeat: frames,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::new()
        });
        let elapsed = start.elapsed();
        outcome.map_err(Error::program("run", PROGRAM, &self.name))?;
        Ok(elapsed)
    }
}

const MISSING: Error = Error::Incomplete {
    program: PROGRAM,
    missing: "XDP program",
};

/// The program: draws a source port, and writes the whole frame.
fn instructions(template: &Template) -> Vec<asm::Instruction> {
    let at = |offset: usize| i16::try_from(offset).unwrap_or(i16::MAX);
    let length = i32::try_from(template.len()).unwrap_or(i32::MAX);
    let (context, data, end, limit, port, balance) = (6, 2, 3, 4, 7, 8);
    let mut code = vec![
        asm::copy(context, 1),
        asm::call(GET_PRANDOM_U32),
        asm::remainder(0, template.flows.into()),
        asm::add(0, template.first_port.into()),
        asm::copy(port, 0),
        asm::network_16(port),
        asm::copy(balance, port),
        asm::xor(balance, 0xffff),
        asm::load_32(data, context, 0),
        asm::load_32(end, context, 4),
        asm::copy(limit, data),
        asm::add(limit, length),
    ];
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
    writes.extend([
        asm::store_16(data, at(template.port_at), port),
        asm::store_16(data, at(template.balance_at), balance),
        asm::set(0, XDP_PASS),
        asm::exit(),
    ]);
    code.push(asm::skip_if_above(limit, end, at(writes.len())));
    code.extend(writes);
    code.extend([asm::set(0, XDP_DROP), asm::exit()]);
    code
}
