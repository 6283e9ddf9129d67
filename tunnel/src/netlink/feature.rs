//! Features of an interface: what it does on behalf of the network stack, by the names of
//! `ethtool -k`.
//!
//! Asked for over generic netlink, by name, so that no table of bits is needed
//! (Documentation/networking/ethtool-netlink.rst, Linux 5.7 and later).

use std::{fmt, io};

use nix::errno::Errno;
use rtnetlink::{
    packet_core::{
        DecodeError, NLM_F_ACK, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
        NetlinkMessage, NetlinkPayload, NetlinkSerializable, NlasIterator,
    },
    sys::{Socket, protocols::NETLINK_GENERIC},
};

use super::{
    Netlink, NetlinkError, explain,
    link::check_index,
    worker::{Failure, refusal},
};
use crate::error::KernelError;

/// Name of the feature that leaves transport checksums to the interface, as virtual ones have it.
pub const TX_CHECKSUM: &str = "tx-checksum-ip-generic";

/// Name of the feature that leaves the cutting of `UDP_SEGMENT` frames to the interface.
pub const TX_UDP_SEGMENTATION: &str = "tx-udp-segmentation";

// Messages and attributes: include/uapi/linux/genetlink.h and ethtool_netlink.h.
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const ETHTOOL_MSG_FEATURES_GET: u8 = 11;
const ETHTOOL_MSG_FEATURES_SET: u8 = 12;
const ETHTOOL_A_HEADER_DEV_INDEX: u16 = 1;
const ETHTOOL_A_FEATURES_HEADER: u16 = 1;
const ETHTOOL_A_FEATURES_WANTED: u16 = 3;
const ETHTOOL_A_FEATURES_ACTIVE: u16 = 4;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BITS_BIT: u16 = 1;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;
const ETHTOOL_A_BITSET_BIT_VALUE: u16 = 3;
const NLA_F_NESTED: u16 = 0x8000;

impl Netlink {
    /// Tells whether a feature of an interface is on.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Unsupported`] where the kernel has no ethtool over netlink; the kernel's
    /// refusal: `ENODEV` if the interface is not there.
    pub fn feature(&self, index: u32, name: &str) -> Result<bool, NetlinkError> {
        let operation = format!("look at feature {name} of interface {index}");
        check_index(&operation, index)?;
        let name = name.to_owned();
        self.generic(operation, move |ethtool| ethtool.is_active(index, &name))
    }

    /// Switches a feature of an interface; says whether it is as wanted now.
    ///
    /// `false` where the driver has the feature fixed the other way, or where it depends on
    /// another one.
    ///
    /// # Errors
    ///
    /// As [`Netlink::feature`]; `EINVAL` or `EOPNOTSUPP` for a feature that this kernel does not
    /// know.
    pub fn set_feature(&self, index: u32, name: &str, on: bool) -> Result<bool, NetlinkError> {
        let state = if on { "on" } else { "off" };
        let operation = format!("switch feature {name} of interface {index} {state}");
        check_index(&operation, index)?;
        let name = name.to_owned();
        self.generic(operation, move |ethtool| {
            ethtool.switch(index, &name, on)?;
            Ok(ethtool.is_active(index, &name)? == on)
        })
    }

    /// Works on an ethtool socket in this handle's namespace.
    fn generic<R: Send + 'static>(
        &self,
        operation: impl fmt::Display,
        work: impl FnOnce(&mut Ethtool) -> Result<R, Failure> + Send + 'static,
    ) -> Result<R, NetlinkError> {
        let outcome = self
            .worker
            .run(move || Ethtool::open().and_then(|mut ethtool| work(&mut ethtool)));
        match outcome.and_then(|outcome| outcome) {
            Ok(result) => Ok(result),
            Err(Failure::Kernel(source)) if source.errno == Errno::ENOENT as i32 => {
                Err(NetlinkError::Unsupported {
                    operation: operation.to_string(),
                    what: "this kernel does not offer ethtool over netlink",
                    remedy: "use a kernel built with CONFIG_ETHTOOL_NETLINK",
                    source,
                })
            }
            Err(failure) => Err(explain(operation, failure)),
        }
    }
}

/// A generic netlink socket and the number that the ethtool family has.
struct Ethtool {
    socket: Socket,
    family: u16,
}

impl Ethtool {
    fn open() -> Result<Self, Failure> {
        let socket = open_socket().map_err(|error| Failure::Kernel(of_io(&error)))?;
        let mut this = Self {
            socket,
            family: GENL_ID_CTRL,
        };
        let name = attribute(CTRL_ATTR_FAMILY_NAME, b"ethtool\0");
        let answer = this.exchange(CTRL_CMD_GETFAMILY, &name)?;
        let family = attribute_of(&answer, CTRL_ATTR_FAMILY_ID);
        let family = family.and_then(|bytes| bytes.first_chunk().copied());
        this.family = family.map(u16::from_ne_bytes).ok_or(Failure::Closed)?;
        Ok(this)
    }

    fn is_active(&mut self, index: u32, name: &str) -> Result<bool, Failure> {
        let answer = self.exchange(ETHTOOL_MSG_FEATURES_GET, &interface(index))?;
        let active = attribute_of(&answer, ETHTOOL_A_FEATURES_ACTIVE).unwrap_or_default();
        let bits = attribute_of(&active, ETHTOOL_A_BITSET_BITS).unwrap_or_default();
        let wanted = terminated(name);
        // A list of those that are on.
        Ok(NlasIterator::new(bits.as_slice())
            .filter_map(Result::ok)
            .any(|bit| {
                attribute_of(bit.value(), ETHTOOL_A_BITSET_BIT_NAME) == Some(wanted.clone())
            }))
    }

    fn switch(&mut self, index: u32, name: &str, on: bool) -> Result<(), Failure> {
        let mut bit = attribute(ETHTOOL_A_BITSET_BIT_NAME, &terminated(name));
        if on {
            bit.extend(attribute(ETHTOOL_A_BITSET_BIT_VALUE, &[]));
        }
        let bit = nest(ETHTOOL_A_BITSET_BITS_BIT, &bit);
        let bits = nest(ETHTOOL_A_BITSET_BITS, &bit);
        let mut request = interface(index);
        request.extend(nest(ETHTOOL_A_FEATURES_WANTED, &bits));
        self.exchange(ETHTOOL_MSG_FEATURES_SET, &request).map(drop)
    }

    /// Sends one request; returns the attributes of what is answered before the acknowledgement.
    fn exchange(&mut self, command: u8, attributes: &[u8]) -> Result<Vec<u8>, Failure> {
        const VERSION: u8 = 1;
        let mut body = vec![command, VERSION, 0, 0];
        body.extend_from_slice(attributes);
        let mut request = NetlinkMessage::from(Generic {
            family: self.family,
            body,
        });
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        let of_io = |error: io::Error| Failure::Kernel(of_io(&error));
        self.socket.send(&bytes, 0).map_err(of_io)?;
        let mut answer = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full().map_err(of_io)?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<Generic>::deserialize(rest);
                let message = message.map_err(|_| Failure::Closed)?;
                let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                match message.payload {
                    NetlinkPayload::InnerMessage(message) => answer = message.body,
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(Failure::Kernel(refusal(message.header.flags, &error)));
                    }
                    NetlinkPayload::Error(_) => {
                        // Command and version come first.
                        return Ok(answer.get(4..).unwrap_or_default().to_vec());
                    }
                    _ => {}
                }
            }
        }
    }
}

fn open_socket() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.set_ext_ack(true)?;
    socket.set_cap_ack(true)?;
    Ok(socket)
}

fn of_io(error: &io::Error) -> KernelError {
    KernelError {
        errno: error.raw_os_error().unwrap_or(Errno::EIO as i32),
        message: None,
    }
}

/// A message of generic netlink as it is: command, version, two zeros, attributes.
#[derive(Clone, Debug)]
struct Generic {
    family: u16,
    body: Vec<u8>,
}

impl NetlinkSerializable for Generic {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.body);
    }
}

impl NetlinkDeserializable for Generic {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self {
            family: header.message_type,
            body: payload.to_vec(),
        })
    }
}

impl From<Generic> for NetlinkPayload<Generic> {
    fn from(message: Generic) -> Self {
        Self::InnerMessage(message)
    }
}

/// The header of a request about one interface.
fn interface(index: u32) -> Vec<u8> {
    let index = attribute(ETHTOOL_A_HEADER_DEV_INDEX, &index.to_ne_bytes());
    nest(ETHTOOL_A_FEATURES_HEADER, &index)
}

fn nest(kind: u16, attributes: &[u8]) -> Vec<u8> {
    attribute(kind | NLA_F_NESTED, attributes)
}

/// Writes an attribute: length and kind, two bytes each, and the value, filled up to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    // Names and what is put around them: far below 64 KiB.
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The value of the first attribute of a kind.
fn attribute_of(attributes: &[u8], kind: u16) -> Option<Vec<u8>> {
    NlasIterator::new(attributes)
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind() == kind)
        .map(|attribute| attribute.value().to_vec())
}

fn terminated(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}
