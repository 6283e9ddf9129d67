//! What becomes of a packet: a [`Verdict`], and a [`DropReason`] where it goes no further.

/// Where a packet goes next.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What is done with it.
    pub action: Action,
    /// The interface that it is done with; zero where the action needs none.
    pub interface: u32,
}

/// What is done with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Action {
    /// No opinion: the next program, or the stack, has it.
    Pass = 0,
    /// Nothing: it ends here, and its [`DropReason`] was counted.
    Drop = 1,
    /// Into the network namespace behind the interface, the host's side of a pod's pair.
    IntoPod = 2,
    /// Out of the interface, Ethernet addresses written.
    Out = 3,
    /// Out of the interface once the kernel has resolved the neighbour, which is in
    /// [`Work::hop`](crate::work::Work::hop).
    OutToNeighbour = 4,
    /// Received by the interface, one of this node.
    ToHost = 5,
    /// Nothing more: what became of it is on its way already.
    Consumed = 6,
}

impl Verdict {
    /// [`Action::Pass`].
    pub const PASS: Self = Self::new(Action::Pass, 0);
    /// [`Action::Drop`].
    pub const DROP: Self = Self::new(Action::Drop, 0);

    /// `action` with `interface`.
    #[inline(always)]
    pub const fn new(action: Action, interface: u32) -> Self {
        Self { action, interface }
    }
}

macro_rules! outcomes {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $code:expr, $label:literal;)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $name {
            $($(#[$doc])* $variant = $code,)*
        }

        impl $name {
            /// All of them, in order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The words for it in events, metrics and on the command line.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }

            /// Its number: column of the metrics array.
            #[inline(always)]
            #[must_use]
            pub const fn code(self) -> u32 {
                self as u32
            }

            /// The one with this number.
            #[must_use]
            pub fn from_code(code: u32) -> Option<Self> {
                Self::ALL.iter().copied().find(|outcome| outcome.code() == code)
            }
        }
    };
}

outcomes! {
    /// Why a packet was dropped: the return value of every stage, the event, the metric's label.
    DropReason {
        /// A header is cut short, contradicts itself or its length.
        InvalidPacket = 1, "Invalid packet";
        /// A pod sent from an Ethernet address that is not its own.
        InvalidSourceMac = 2, "Invalid source mac";
        /// The source address cannot belong to whoever sent the packet.
        InvalidSourceIp = 3, "Invalid source ip";
        /// Neither IPv4, IPv6 nor ARP; VLAN tags among them.
        UnsupportedL2 = 4, "Unsupported L2 protocol";
        /// Loopback or unspecified address, or IPv6 link-local, as source or destination.
        Martian = 5, "Martian address";
        /// More than one receiver.
        Multicast = 6, "Multicast";
        /// An IP protocol that the path at hand cannot carry.
        UnknownL4 = 7, "Unknown L4 protocol";
        /// A fragment of what must come whole: ICMP that is not echo.
        Fragment = 8, "IP fragmentation not supported";
        /// TTL or hop limit used up.
        TtlExceeded = 9, "TTL exceeded";
        /// A pod sent tunnel packets to a node.
        EncapsulationProhibited = 10, "Encapsulation traffic is prohibited";
        /// A tunnel packet from an address that is no peer's, or not on the peer's uplink.
        TunnelUnknownPeer = 11, "Tunnel packet from unknown peer";
        /// The inner source address does not belong to the peer.
        TunnelInvalidSource = 12, "Tunnel packet with foreign inner source";
        /// The GENEVE header is cut short, of another version, a control packet, or not Ethernet.
        TunnelMalformed = 13, "Malformed tunnel header";
        /// A GENEVE option that must be understood and is not.
        TunnelCriticalOption = 14, "Unknown critical tunnel option";
        /// The VNI is no identity that may come from a peer, or not the one of the inner source.
        InvalidIdentity = 15, "Invalid identity";
        /// No rule of a policy allows it, and one is needed.
        PolicyDenied = 16, "Policy denied";
        /// The routing table has no way.
        NoRoute = 17, "FIB lookup failed";
        /// The flow could not be entered.
        FlowInsertFailed = 18, "CT: Map insertion failed";
        /// No free port to masquerade behind.
        NatExhausted = 19, "No mapping for NAT masquerade";
        /// A protocol that cannot be masqueraded.
        NatUnsupported = 20, "Unsupported protocol for NAT masquerade";
        /// The interface belongs to no endpoint.
        UnknownEndpoint = 21, "Unknown endpoint";
        /// This node's pod range, and no pod there.
        Vacant = 22, "Stale or unroutable IP";
        /// The kernel would not change the packet.
        RewriteFailed = 23, "Error writing to packet";
        /// An ICMP message that no flow explains.
        IcmpUnrelated = 24, "ICMP without a flow";
        /// A TCP segment that no flow explains and that may not begin one.
        TcpWithoutFlow = 25, "TCP without a flow";
        /// ICMPv6 that only routers send.
        ForbiddenIcmpV6 = 26, "Forbidden ICMPv6 message";
        /// ARP or neighbour discovery for something else than the gateway.
        NeighbourNotGateway = 27, "Neighbour is not the gateway";
        /// Came in by another way than its flow allows.
        UnexpectedArrival = 28, "Unexpected arrival";
        /// Reached the node's side of the gateway pair without having been judged.
        NotForwarded = 29, "Not forwarded by the datapath";
        /// Larger than the way takes, and must not be fragmented.
        FragmentationNeeded = 30, "Fragmentation needed";
        /// A fragment whose packet's first one was not seen.
        FragmentWithoutFirst = 31, "First logical datagram fragment not found";
        /// The endpoint has its share of the flow tables already.
        EndpointQuota = 32, "CT: Endpoint quota exceeded";
        /// A fragment of what other fragments brought already, or of a packet whose fragments
        /// overlapped.
        FragmentOverlap = 34, "Overlapping IP fragments";
        /// A fragment that ends before the headers do, or begins within them.
        FragmentTooSmall = 35, "IP fragment too small";
        /// More packets in fragments than one end may have unfinished, or one with more gaps than
        /// are kept track of.
        TooManyFragments = 36, "Too many fragmented packets";
        /// A pod that holds most of the ports to masquerade behind, where none but the reserve for
        /// others is left.
        NatShare = 37, "Masquerade: endpoint's share of ports used up";
        /// A rule of a policy denies it.
        PolicyDeniedByRule = 38, "Policy denied by denylist";
    }
}

outcomes! {
    /// How a packet went on, for the counters.
    Forward {
        /// Into a local pod.
        ToEndpoint = 96, "to-endpoint";
        /// Encapsulated, to a peer.
        ToOverlay = 97, "to-overlay";
        /// Out of an uplink as it is.
        ToNetwork = 98, "to-network";
        /// To this node.
        ToHost = 99, "to-host";
        /// To this node's stack, which forwards it.
        ToStack = 100, "to-stack";
        /// Answered by the datapath: ARP, neighbour discovery, ICMP errors about what it dropped.
        Answered = 101, "answered";
    }
}

outcomes! {
    /// What policy said of a flow in one direction of an endpoint, for the counters.
    Ruling {
        /// A rule allows it.
        Allowed = 112, "policy-allowed";
        /// No rule allows it, or one denies it.
        Denied = 113, "policy-denied";
        /// It would be denied, and goes on because the endpoint is only audited.
        Audited = 114, "policy-audited";
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::metric::{FORWARDS, OUTCOMES, RULINGS};
    use std::collections::HashSet;
    use std::vec::Vec;

    #[test]
    fn every_outcome_has_its_own_cell_and_words() {
        let drops = DropReason::ALL.iter().map(|r| (r.code(), r.label()));
        let forwards = Forward::ALL.iter().map(|f| (f.code(), f.label()));
        let rulings = Ruling::ALL.iter().map(|r| (r.code(), r.label()));
        let all: Vec<_> = drops.chain(forwards).chain(rulings).collect();
        let codes: HashSet<_> = all.iter().map(|(code, _)| code).collect();
        let labels: HashSet<_> = all.iter().map(|(_, label)| label).collect();
        assert_eq!((codes.len(), labels.len()), (all.len(), all.len()));
        assert!(
            DropReason::ALL
                .iter()
                .all(|r| (1..FORWARDS).contains(&r.code()))
        );
        assert!(
            Forward::ALL
                .iter()
                .all(|f| (FORWARDS..RULINGS).contains(&f.code()))
        );
        assert!(
            Ruling::ALL
                .iter()
                .all(|r| (RULINGS..OUTCOMES).contains(&r.code()))
        );
        assert_eq!(DropReason::from_code(9), Some(DropReason::TtlExceeded));
        assert_eq!(DropReason::from_code(0), None);
    }
}
