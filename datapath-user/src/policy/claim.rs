//! Claims: ports as rules name them, and how those of several rules become one answer.

use std::collections::{BTreeMap, BTreeSet};

use datapath_kern::abi::policy::{PortKey, PortVerdict};

use super::class::ClassEntry;

/// Some ports, and what a rule says of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    /// IP protocol number; none: all of all protocols.
    pub(super) protocol: Option<u8>,
    /// First port; zero of all protocols.
    pub(super) first: u16,
    /// Last port, which is not below the first.
    pub(super) last: u16,
    /// What is said of them.
    pub(super) verdict: PortVerdict,
}

impl Claim {
    /// All ports of a protocol, or of all.
    pub(super) const fn whole(protocol: Option<u8>, verdict: PortVerdict) -> Self {
        Self {
            protocol,
            first: 0,
            last: u16::MAX,
            verdict,
        }
    }

    const fn is_whole(&self) -> bool {
        self.first == 0 && self.last == u16::MAX
    }
}

/// Resolves claims in order of precedence, the strongest first: of those about a port, the first
/// counts.
pub(super) fn resolve<'a>(claims: impl Iterator<Item = &'a Claim>) -> Vec<ClassEntry> {
    let claims: Vec<&Claim> = claims.collect();
    let protocols: BTreeSet<u8> = claims.iter().filter_map(|claim| claim.protocol).collect();
    let of_all = claims.iter().find(|claim| claim.protocol.is_none());
    let mut entries = Vec::new();
    if let Some(claim) = of_all {
        entries.push(ClassEntry {
            prefix_bits: PortKey::ANY_BITS,
            protocol: 0,
            port: 0,
            verdict: claim.verdict,
        });
    }
    for protocol in protocols {
        let own = claims
            .iter()
            .filter(|claim| claim.protocol.is_none_or(|named| named == protocol));
        of_protocol(protocol, own, &mut entries);
    }
    entries
}

/// Resolves the claims about one protocol.
///
/// The first claim about all its ports is what the ports of no stronger claim have; what is
/// weaker never counts.
fn of_protocol<'a>(
    protocol: u8,
    claims: impl Iterator<Item = &'a &'a Claim>,
    entries: &mut Vec<ClassEntry>,
) {
    // Ports that no claim has been about: last by first.
    let mut free = BTreeMap::from([(0_u16, u16::MAX)]);
    let mut taken: BTreeMap<u16, (u16, PortVerdict)> = BTreeMap::new();
    for claim in claims {
        if claim.is_whole() {
            if claim.protocol.is_some() {
                entries.push(ClassEntry {
                    prefix_bits: PortKey::PROTOCOL_BITS,
                    protocol,
                    port: 0,
                    verdict: claim.verdict,
                });
            }
            break;
        }
        take(&mut free, &mut taken, claim);
    }
    let mut taken = taken.into_iter().peekable();
    while let Some((first, (mut last, verdict))) = taken.next() {
        while let Some((_, (next, _))) = taken
            .next_if(|(next, (_, other))| Some(*next) == last.checked_add(1) && *other == verdict)
        {
            last = next;
        }
        entries.extend(blocks(first, last).map(|(port, bits)| ClassEntry {
            prefix_bits: PortKey::PROTOCOL_BITS + bits,
            protocol,
            port,
            verdict,
        }));
    }
}

/// Gives a claim the ports that are still free.
fn take(
    free: &mut BTreeMap<u16, u16>,
    taken: &mut BTreeMap<u16, (u16, PortVerdict)>,
    claim: &Claim,
) {
    let gaps: Vec<(u16, u16)> = free
        .range(..=claim.last)
        .rev()
        .map(|(&first, &last)| (first, last))
        .take_while(|(_, last)| *last >= claim.first)
        .collect();
    for (first, last) in gaps {
        free.remove(&first);
        let (from, to) = (first.max(claim.first), last.min(claim.last));
        if first < from {
            free.insert(first, from - 1);
        }
        if to < last {
            free.insert(to + 1, last);
        }
        taken.insert(from, (to, claim.verdict));
    }
}

/// The fewest aligned blocks that make up a range of ports: first port and length of the prefix,
/// in bits of the port.
fn blocks(first: u16, last: u16) -> impl Iterator<Item = (u16, u32)> {
    let mut next = Some(first);
    std::iter::from_fn(move || {
        let start = next?;
        let left = u32::from(last) - u32::from(start) + 1;
        let aligned = start.trailing_zeros().min(16);
        let size_bits = aligned.min(left.ilog2());
        let end = u32::from(start) + (1 << size_bits);
        next = u16::try_from(end).ok().filter(|end| *end <= last);
        Some((start, 16 - size_bits))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::class::Class;
    use super::*;

    fn claims() -> impl Strategy<Value = Vec<Claim>> {
        let claim = (0..4_u8, any::<(u16, u16)>(), 1..5_u32, any::<bool>());
        let claim = claim.prop_map(|(kind, (a, b), rule_id, near)| {
            let verdict = PortVerdict {
                rule_id,
                ..PortVerdict::default()
            };
            let (a, b) = if near { (a % 8, b % 8) } else { (a, b) };
            match kind {
                0 => Claim::whole(None, verdict),
                1 => Claim::whole(Some(6), verdict),
                _ => Claim {
                    protocol: Some(if kind == 2 { 6 } else { 17 }),
                    first: a.min(b),
                    last: a.max(b),
                    verdict,
                },
            }
        });
        prop::collection::vec(claim, 0..12)
    }

    proptest! {
        #[test]
        fn the_first_claim_about_a_port_counts(claims in claims(), more in any::<[u16; 8]>()) {
            let class = Class { entries: resolve(claims.iter()) };
            let edges = claims.iter().flat_map(|c| {
                [c.first, c.last, c.first.wrapping_sub(1), c.last.wrapping_add(1)]
            });
            for port in edges.chain(more) {
                for protocol in [6, 17, 1] {
                    let wanted = claims.iter().find(|c| {
                        c.protocol.is_none_or(|p| p == protocol)
                            && (c.first..=c.last).contains(&port)
                    });
                    prop_assert_eq!(
                        class.verdict(protocol, port),
                        wanted.map(|claim| claim.verdict),
                        "{}/{}", protocol, port
                    );
                }
            }
            let mut prefixes: Vec<_> = class
                .entries
                .iter()
                .map(|e| (e.prefix_bits, e.protocol, e.port))
                .collect();
            prefixes.sort_unstable();
            prefixes.dedup();
            prop_assert_eq!(prefixes.len(), class.entries.len());
        }
    }

    #[test]
    fn ranges_are_cut_into_the_fewest_blocks() {
        let cut = |first, last| blocks(first, last).collect::<Vec<_>>();
        assert_eq!(cut(80, 80), [(80, 16)]);
        assert_eq!(cut(0, u16::MAX), [(0, 0)]);
        assert_eq!(cut(1, 3), [(1, 16), (2, 15)]);
        assert_eq!(cut(65_534, 65_535), [(65_534, 15)]);
        assert_eq!(cut(1, u16::MAX).len(), 16);
        assert_eq!(cut(1, 65_534).len(), 30);
    }
}
