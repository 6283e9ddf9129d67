//! A flow between two pods of one node, packet by packet.

use datapath_kern::abi::flow::Flow;
use datapath_kern::env::Table;
use datapath_kern::host::{Host, plan};
use datapath_kern::packet::Family;
use datapath_kern::verdict::Action;

use super::frame::{ACK, L4, SYN, Tuple};
use super::{Out, entry, from_pod, key, node};

/// Where a flow lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Nowhere,
    Pending,
    Established,
}

/// A flow from pod 1 to pod 2 of one node.
pub(crate) struct Talk {
    pub(crate) host: Host,
    pub(crate) there: Tuple,
}

impl Talk {
    pub(crate) fn new(host: Host, l4: L4) -> Self {
        let pods = [1, 2].map(|number| plan::pod(1, number, Family::V4));
        Self {
            host,
            there: Tuple::new(pods[0], pods[1], l4),
        }
    }

    pub(crate) fn tcp() -> Self {
        Self::new(node(1, Family::V4), L4::Tcp(40_000, 80, 0))
    }

    /// Handshake done.
    pub(crate) fn established() -> Self {
        let talk = Self::tcp();
        talk.client(SYN);
        talk.server(SYN | ACK);
        talk.client(ACK);
        assert_eq!(talk.place(), Place::Established);
        talk
    }

    pub(crate) fn client_out(&self, flags: u8) -> Out {
        from_pod(&self.host, 1, 1, &self.there.with_flags(flags))
    }

    pub(crate) fn server_out(&self, flags: u8) -> Out {
        from_pod(&self.host, 1, 2, &self.there.answer(flags))
    }

    #[track_caller]
    pub(crate) fn client(&self, flags: u8) {
        let to = plan::pod_interface(2);
        self.client_out(flags)
            .went(Action::IntoPod, to, "egress to-endpoint");
    }

    #[track_caller]
    pub(crate) fn server(&self, flags: u8) {
        let to = plan::pod_interface(1);
        self.server_out(flags)
            .went(Action::IntoPod, to, "egress to-endpoint");
    }

    /// Both halves, after checking that they are a pair in the same table.
    #[track_caller]
    pub(crate) fn halves(&self) -> Option<[Flow; 2]> {
        let keys = [key(&self.there), key(&self.there.answer(0))];
        let place = self.place();
        let table = if place == Place::Established {
            &self.host.flows
        } else {
            &self.host.pending
        };
        let [Some(forward), Some(reply)] = keys.map(|key| table.get(&key)) else {
            assert_eq!(
                keys.map(|key| entry(&self.host, &key)),
                [None; 2],
                "half a flow"
            );
            return None;
        };
        assert_eq!(forward.partner_key(&keys[0]), keys[1]);
        assert_eq!(reply.partner_key(&keys[1]), keys[0]);
        assert!(forward.pair == reply.pair && forward.pair != 0);
        assert_eq!(forward.state, reply.state);
        Some([forward, reply])
    }

    #[track_caller]
    pub(crate) fn state(&self) -> u8 {
        self.halves().unwrap()[0].state
    }

    /// Seconds that each half has left.
    #[track_caller]
    pub(crate) fn left_s(&self) -> [u32; 2] {
        self.halves()
            .unwrap()
            .map(|half| half.expires_s - self.host.clock_s.get())
    }

    #[track_caller]
    pub(crate) fn pair(&self) -> u32 {
        self.halves().unwrap()[0].pair
    }

    pub(crate) fn place(&self) -> Place {
        let key = key(&self.there);
        match (self.host.flows.get(&key), self.host.pending.get(&key)) {
            (None, None) => Place::Nowhere,
            (None, Some(_)) => Place::Pending,
            (Some(_), None) => Place::Established,
            both => panic!("in both tables: {both:?}"),
        }
    }
}
