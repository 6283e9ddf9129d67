//! Where the datapath does not do as netfilter does, and why.

use std::fmt;

use crate::traffic::{ACK, Conversation, FIN, From, Kind, RST, SYN, Sequence, Step};

macro_rules! differences {
    ($($(#[$doc:meta])* $name:ident: $why:literal,)*) => {
        /// A way in which the datapath differs on purpose.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Difference {
            $($(#[$doc])* $name,)*
        }

        impl Difference {
            /// All of them, in the order of the documentation.
            pub(crate) const ALL: &[Self] = &[$(Self::$name,)*];

            /// What it is and why, as the datapath's documentation has it.
            pub(crate) fn why(self) -> &'static str {
                match self { $(Self::$name => $why,)* }
            }
        }
    };
}

differences! {
    /// On a live flow.
    SenselessFlags: "A segment whose flags mean nothing together (none, FIN without ACK, SYN and \
        FIN) is invalid to netfilter. The datapath leaves it to the two ends, which drop it: it \
        closes at most what its sender may close anyway.",
    /// In the middle.
    PickedUpByFin: "A connection that is picked up in the middle (`tcp_loose`) may begin with a FIN \
        and an ACK; netfilter wants an ACK alone. The last segments of what a restart found open \
        reach the other side, which so need not wait for its timeout.",
    /// SYN sent.
    BeforeTheAnswer: "Between a SYN and its answer netfilter takes little more than another SYN. \
        The datapath forwards what the originator sends and what it is sent: as the flow is not \
        proven, it stays in the table of pending flows, and lives a minute.",
    /// On a connection that was open.
    SynFromResponder: "A SYN alone from the side that was called is invalid to netfilter. On a live \
        flow the datapath forwards it: the other end answers with a challenge ACK (RFC 9293, \
        section 3.10.7.4), which is how a peer that has restarted learns of the old connection.",
    /// From the wrong side.
    SynAckFromOriginator: "A SYN with an ACK from the side that called is invalid to netfilter. On a \
        live flow the datapath forwards it, for the same reason.",
    /// Of sequence.
    ResetOutOfPlace: "netfilter drops an RST whose sequence number lies before what was \
        acknowledged. The datapath follows no sequence numbers, and so knows nothing of windows: \
        the receiver drops the RST by them (RFC 5961, section 3).",
    /// Both.
    AfterReset: "netfilter forgets a connection at once that is reset before it was answered, and \
        takes no SYN with an ACK for one that was. For the datapath it is closed, and forwards \
        for its last seconds what was still under way.",
    /// Ten seconds.
    PortStillHeld: "For those seconds the closed flow holds its port outside, too, and another one \
        gets another port; netfilter gives it out at once. Late segments of the old connection \
        never reach the new one.",
    /// By either side.
    ClosedMakesRoom: "A SYN of either side makes a closed flow end at once, though \
        from outside nothing begins in its place. In netfilter it lives on until its time is up.",
    /// Foreign.
    ErrorByStranger: "netfilter takes an ICMP error about a connection from any inside host. To the \
        datapath it must come from the pod that got the packet: one pod does not speak of the \
        connections of another.",
    /// Port of another destination.
    PortElsewhere: "netfilter translates a source to the port that it has towards another \
        destination already, even if its own port is free. The datapath asks for its own port \
        first, for every destination: what a pod chose is kept where it can be, and the ports \
        of destinations do not depend on each other.",
}

/// What a conversation has seen so far, from both sides alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[allow(clippy::struct_excessive_bools, reason = "each was seen or not")]
pub(crate) struct History {
    /// A packet of it went on.
    pub(crate) begun: bool,
    /// It began with a SYN, or something else.
    pub(crate) by_syn: bool,
    /// One from outside did; where it began with a SYN, one with SYN and ACK.
    pub(crate) answered: bool,
    /// Who sent a FIN: inside, outside.
    pub(crate) fin: [bool; 2],
    /// Who sent an RST.
    pub(crate) rst: [bool; 2],
    /// The last segment had SYN.
    pub(crate) syn_last: bool,
}

impl History {
    /// Notes a packet that went on.
    pub(crate) fn note(&mut self, step: &Step) {
        let outside = step.from == From::Outside;
        let Kind::Tcp(flags, ..) = step.kind else {
            let error = matches!(step.kind, Kind::Error(_));
            self.begun |= !error;
            self.answered |= outside && !error;
            return;
        };
        if !outside && flags & (SYN | ACK) == SYN && (self.over() || !self.begun) {
            *self = Self {
                by_syn: true,
                ..Self::default()
            };
        }
        self.begun = true;
        let greets = flags & (SYN | ACK) == SYN | ACK;
        self.answered |= outside && (greets || !self.by_syn);
        let sender = usize::from(outside);
        self.fin[sender] |= flags & FIN != 0 && flags & RST == 0;
        self.rst[sender] |= flags & RST != 0;
        self.syn_last = flags & SYN != 0;
    }

    /// Whether both sides are done.
    pub(crate) fn over(self) -> bool {
        self.rst.contains(&true) || self.fin == [true; 2]
    }
}

/// A packet of a sequence that the two did not do the same with.
pub(crate) struct Disagreement<'a> {
    pub(crate) sequence: &'a Sequence,
    pub(crate) index: usize,
    /// What all conversations have seen.
    pub(crate) histories: &'a [History],
    /// What the conversation has seen that the packet belongs to.
    pub(crate) history: History,
    /// Whether it is an error of an inside host about a packet that another one got.
    pub(crate) stranger: bool,
    pub(crate) netfilter_forwards: bool,
    pub(crate) datapath_forwards: bool,
}

impl Disagreement<'_> {
    /// The packet and what went before, in a line that others of its kind share.
    pub(crate) fn summary(&self) -> String {
        let step = &self.sequence.steps[self.index];
        let kind = match step.kind {
            Kind::Tcp(flags, ..) => format!("TCP flags {flags:#04x}"),
            Kind::Udp(_) => "Udp".to_owned(),
            other => format!("{other:?}"),
        };
        let History {
            begun,
            by_syn,
            answered,
            fin,
            rst,
            syn_last,
        } = self.history;
        let (theirs, ours) = self.words();
        format!(
            "netfilter {theirs}, the datapath {ours}: {:?} {:?} {kind}, begun {begun} by SYN {by_syn} \
             answered {answered} FIN {fin:?} RST {rst:?} SYN last {syn_last}",
            step.from, self.sequence.flows[step.flow].protocol
        )
    }

    fn words(&self) -> (&'static str, &'static str) {
        let word = |forwards| if forwards { "forwards" } else { "stops" };
        (word(self.netfilter_forwards), word(self.datapath_forwards))
    }

    /// The rule that explains it.
    pub(crate) fn rule(&self) -> Option<Difference> {
        match (self.netfilter_forwards, self.datapath_forwards) {
            (false, true) => self.datapath_alone(),
            (true, false) => self.netfilter_alone(),
            _ => self.otherwise(),
        }
    }

    fn datapath_alone(&self) -> Option<Difference> {
        let step = &self.sequence.steps[self.index];
        let History {
            begun,
            by_syn,
            answered,
            rst,
            ..
        } = self.history;
        let inside = step.from == From::Inside;
        let reset = rst.contains(&true);
        let Kind::Tcp(flags, ..) = step.kind else {
            let error = matches!(step.kind, Kind::Error(_));
            return (error && reset).then_some(Difference::AfterReset);
        };
        let rules = [
            (Difference::SenselessFlags, begun && senseless(flags)),
            (Difference::AfterReset, reset),
            (
                Difference::ResetOutOfPlace,
                flags & RST != 0 && begun && answered,
            ),
            (
                Difference::PickedUpByFin,
                inside && !begun && flags & (SYN | FIN | RST | ACK) == FIN | ACK,
            ),
            (Difference::BeforeTheAnswer, by_syn && !answered),
            (
                Difference::SynFromResponder,
                !inside && begun && flags & (SYN | ACK) == SYN,
            ),
            (
                Difference::SynAckFromOriginator,
                inside && begun && flags & (SYN | ACK) == SYN | ACK,
            ),
        ];
        rules.into_iter().find(|rule| rule.1).map(|rule| rule.0)
    }

    fn netfilter_alone(&self) -> Option<Difference> {
        let step = &self.sequence.steps[self.index];
        if matches!(step.kind, Kind::Error(_)) && self.stranger {
            return Some(Difference::ErrorByStranger);
        }
        let closed = self.history.over() && self.called_after_the_end();
        closed.then_some(Difference::ClosedMakesRoom)
    }

    /// Whether a SYN from outside came to the conversation before.
    fn called_after_the_end(&self) -> bool {
        let steps = &self.sequence.steps[..self.index];
        steps.iter().any(|step| {
            let syn = matches!(step.kind, Kind::Tcp(flags, ..) if flags & (SYN | ACK) == SYN);
            syn && step.from == From::Outside
        })
    }

    /// Both forward the packet, but not the same: the one kept its port, the other did not.
    fn otherwise(&self) -> Option<Difference> {
        let step = &self.sequence.steps[self.index];
        if step.from == From::Outside || !self.history.over() && self.history.begun {
            return None;
        }
        let flows = &self.sequence.flows;
        let flow = &flows[step.flow];
        let others = || {
            let others = flows.iter().zip(self.histories).enumerate();
            others.filter(|(index, (other, history))| {
                *index != step.flow
                    && history.begun
                    && (other.protocol, other.port) == (flow.protocol, flow.port)
            })
        };
        let elsewhere =
            |other: &Conversation| other.pod == flow.pod && other.remote_port != flow.remote_port;
        let held = |other: &Conversation, history: &History| {
            other.remote_port == flow.remote_port && history.over()
        };
        if others().any(|(_, (other, history))| held(other, history)) {
            Some(Difference::PortStillHeld)
        } else if others().any(|(_, (other, _))| elsewhere(other)) {
            Some(Difference::PortElsewhere)
        } else {
            None
        }
    }
}

/// Whether these flags mean nothing together: what `tcp_valid_flags` of netfilter does not have
/// (`net/netfilter/nf_conntrack_proto_tcp.c`).
fn senseless(flags: u8) -> bool {
    let flags = flags & (SYN | FIN | RST | ACK);
    ![SYN, SYN | ACK, RST, RST | ACK, FIN | ACK, ACK].contains(&flags)
}

impl fmt::Display for Disagreement<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, flow) in self.sequence.flows.iter().enumerate() {
            writeln!(f, "conversation {index}: {flow:?}")?;
        }
        for step in &self.sequence.steps[..=self.index] {
            writeln!(f, "{} {:?} {:?}", step.flow, step.from, step.kind)?;
        }
        let (theirs, ours) = self.words();
        writeln!(f, "netfilter {theirs}, the datapath {ours}")
    }
}
