//! Who cuts what a socket sends by `UDP_SEGMENT` into datagrams.
//!
//! A frame of several datagrams that the datapath itself puts into a tunnel packet and takes out
//! again keeps the mark of the tunnel (`skb->encapsulation`, `SKB_GSO_UDP_TUNNEL`), and the
//! receiving socket, which cannot cut it any more, drops it (`udp_rcv_segment`, `include/net/udp.h`;
//! seen on Linux 6.18, without a counter). So nothing of the kind may reach the tunnel: the
//! senders' own interfaces are told not to take it, and their stack cuts it before.

use datapath_tunnel::netlink::{Netlink, NetlinkError, TX_UDP_SEGMENTATION};

use crate::config::Tunnel;

/// Who cuts UDP into datagrams, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct UdpSegmentation {
    /// Why an interface that should leave it to the stack does not.
    refused: Option<String>,
    by_stack: bool,
}

impl UdpSegmentation {
    /// What a tunnel of this kind needs.
    pub(crate) fn of(tunnel: Tunnel) -> Self {
        Self {
            refused: None,
            by_stack: tunnel == Tunnel::Direct,
        }
    }

    /// Leaves it to the stack that sends by an interface, where that is needed. Traffic other than
    /// such frames through the tunnel does not depend on it, so that a refusal is no error.
    pub(crate) fn set_up(&mut self, netlink: &Netlink, index: u32, name: &str) {
        if !self.by_stack {
            return;
        }
        let refused = match netlink.set_feature(index, TX_UDP_SEGMENTATION, false) {
            Ok(true) => return,
            Ok(false) => format!("its driver keeps {TX_UDP_SEGMENTATION} on"),
            Err(error) => reason(&error),
        };
        tracing::warn!(
            interface = name,
            refused,
            "what sockets send by UDP_SEGMENT through the tunnel will be lost"
        );
        self.refused = Some(format!("{name}: {refused}"));
    }

    /// The word for it in every output: `stack` or `interface`.
    pub(crate) fn name(&self) -> &'static str {
        if self.by_stack && self.refused.is_none() {
            "stack"
        } else {
            "interface"
        }
    }

    /// Why.
    pub(crate) fn why(&self) -> String {
        match &self.refused {
            Some(refused) => format!("lost in the tunnel: {refused}"),
            None if self.by_stack => "the tunnel cannot carry frames of several datagrams".into(),
            None => "no tunnel of ours on the way".into(),
        }
    }
}

fn reason(error: &NetlinkError) -> String {
    use std::error::Error as _;
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
