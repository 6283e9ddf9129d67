//! Sends frames back to where they came from.

use std::fmt;

use aya::Ebpf;
use datapath_conformance::netns::Namespace;

use super::{
    Template,
    assembly::{self as asm, Instruction},
    classifier::{self, Way},
};
use crate::error::Result;

const PROGRAM: &str = "reflector";
/// Helper `bpf_redirect`.
const REDIRECT: i32 = 23;
/// `TCX_NEXT` and `TC_ACT_UNSPEC`: others decide.
const NEXT: i32 = -1;
/// `BPF_F_INGRESS`: as if it had arrived there.
const INGRESS: i32 = 1;
/// Offsets of `mark`, `ifindex`, `data` and `data_end` in `struct __sk_buff` (include/uapi/linux/bpf.h).
const MARK_AT: i16 = 8;
const INTERFACE_AT: i16 = 40;
const DATA_AT: i16 = 76;
const DATA_END_AT: i16 = 80;

/// The far end of made-up frames that answers: on arriving at an interface, frames of a
/// [`Template`]'s length go back as their own answers, with ends exchanged in all headers; no
/// checksum changes by that. On leaving by an interface they come back as if the answer had arrived
/// there, and never leave. Everything else passes. Dropping it takes it off the interface.
pub struct Reflector {
    // Keeps the program attached.
    _ebpf: Ebpf,
    interface: String,
}

impl fmt::Debug for Reflector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reflector")
            .field("interface", &self.interface)
            .finish_non_exhaustive()
    }
}

impl Reflector {
    /// Attaches one for arriving frames as the template's, of whatever flow.
    ///
    /// # Errors
    ///
    /// [`Error::Assemble`](crate::Error::Assemble), [`Error::Load`](crate::Error::Load) and
    /// [`Error::Program`](crate::Error::Program) for what the kernel refuses.
    pub fn attach(namespace: &Namespace, interface: &str, template: &Template) -> Result<Self> {
        Self::at(namespace, interface, Way::Arriving, template)
    }

    /// Attaches one for leaving frames as the template's, of whatever flow.
    ///
    /// # Errors
    ///
    /// As [`Reflector::attach`].
    pub fn turn_leaving(
        namespace: &Namespace,
        interface: &str,
        template: &Template,
    ) -> Result<Self> {
        Self::at(namespace, interface, Way::Leaving, template)
    }

    fn at(namespace: &Namespace, interface: &str, way: Way, template: &Template) -> Result<Self> {
        let code = instructions(template, way);
        let ebpf = classifier::attach(PROGRAM, &code, None, namespace, interface, way)?;
        Ok(Self {
            _ebpf: ebpf,
            interface: interface.to_owned(),
        })
    }
}

/// The program: exchanges addresses and ports, four or two bytes at a time.
fn instructions(template: &Template, way: Way) -> Vec<Instruction> {
    let at = |offset: usize| i16::try_from(offset).unwrap_or(i16::MAX);
    let length = i32::try_from(template.len()).unwrap_or(i32::MAX);
    let (data, end, limit, one, other) = (2, 3, 4, 5, 7);
    let mut exchange = Vec::new();
    let mut words = |first: usize, second: usize, bytes: usize| {
        for offset in (0..bytes).step_by(4) {
            let (first, second) = (at(first + offset), at(second + offset));
            exchange.extend(if bytes - offset >= 4 {
                [
                    asm::load_32(one, data, first),
                    asm::load_32(other, data, second),
                    asm::store_32(data, second, one),
                    asm::store_32(data, first, other),
                ]
            } else {
                [
                    asm::load_16(one, data, first),
                    asm::load_16(other, data, second),
                    asm::store_16(data, second, one),
                    asm::store_16(data, first, other),
                ]
            });
        }
    };
    let address_bytes = if template.is_v4() { 4 } else { 16 };
    let destination_at = template.port_at - address_bytes;
    words(0, 6, 6);
    words(
        destination_at - address_bytes,
        destination_at,
        address_bytes,
    );
    words(template.port_at, template.port_at + 2, 2);
    let flags = match way {
        Way::Arriving => 0,
        Way::Leaving => INGRESS,
    };
    exchange.extend([
        // What comes from elsewhere has no mark.
        asm::set(2, 0),
        asm::store_32(6, MARK_AT, 2),
        asm::load_32(1, 6, INTERFACE_AT),
        asm::set(2, flags),
        asm::call(REDIRECT),
        asm::exit(),
    ]);
    let mut code = vec![
        asm::copy(6, 1),
        asm::load_32(2, 1, 0),
        asm::skip_unless_equal(2, length, at(exchange.len() + 5)),
        asm::load_32(data, 1, DATA_AT),
        asm::load_32(end, 1, DATA_END_AT),
        asm::copy(limit, data),
        asm::add(limit, length),
        asm::skip_if_above(limit, end, at(exchange.len())),
    ];
    code.extend(exchange);
    code.extend([asm::set(0, NEXT), asm::exit()]);
    code
}
