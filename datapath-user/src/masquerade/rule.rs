//! Which address pods are masqueraded behind: a pure function of what the node has.

use std::fmt;
use std::net::IpAddr;

use datapath_tunnel::netlink::{Address, Route, RouteKind, Scope};
use serde::{Deserialize, Serialize};

/// The loopback interface's index in every network namespace (`LOOPBACK_IFINDEX`,
/// include/net/flow.h).
const LOOPBACK: u32 = 1;

/// Why pods leave by an uplink behind an address: the first of these steps, in this order, that
/// finds one. For each family on its own.
///
/// 1. The configured one, and no other: while the node has not got it, pods' packets to outside
///    are dropped.
/// 2. The preferred source (`src`) of a default route out of the uplink, as the node's own
///    connections take it: with several such routes the one that it was before, else the one of
///    the lowest metric.
/// 3. The one that it was before, also before a restart of the agent, while the node has it
///    (elsewhere than on another uplink): one more address changes nothing.
/// 4. The first of the uplink's own: addresses that stay before those that expire, then the
///    oldest.
/// 5. The first of the loopback interface's, likewise: nodes that are reached by routing have
///    theirs there.
/// 6. The one that it was before, although it is deprecated.
///
/// Only addresses of global scope are taken, and none that are temporary (RFC 8981) or that another
/// host has. Steps 2, 4 and 5 take none that are deprecated or still go through duplicate address
/// detection. Where no step finds one, pods' packets to outside are dropped (`No route`): they
/// never leave under their own addresses instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MasqueradeRule {
    /// Step 1.
    Configured,
    /// Step 2.
    Route,
    /// Steps 3 and 6.
    Kept,
    /// Step 4. Also said of an address that was kept, where it would be chosen again.
    Uplink,
    /// Step 5, likewise.
    Loopback,
}

impl fmt::Display for MasqueradeRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Configured => "as configured",
            Self::Route => "source of the default route",
            Self::Kept => "as before",
            Self::Uplink => "first of the uplink",
            Self::Loopback => "first of lo",
        })
    }
}

/// An address of the node, as far as masquerade is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Own {
    address: IpAddr,
    interface: u32,
    standing: Standing,
}

/// What an address is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Anything.
    Good,
    /// Nothing yet: duplicate address detection goes on.
    Tentative,
    /// What it is used for already.
    Deprecated,
}

/// What the choice is made from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Choice {
    /// Addresses of global scope, in the order in which they are preferred.
    own: Vec<Own>,
    /// Preferred sources of default routes, each with the interface, the lowest metric first.
    sources: Vec<(u32, IpAddr)>,
}

impl Choice {
    /// Takes stock of a node.
    pub(crate) fn of(addresses: &[Address], routes: &[Route]) -> Self {
        Self {
            own: own(addresses),
            sources: sources(routes),
        }
    }

    /// Whether the node has an address, be it good for something or not.
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        self.own.iter().any(|own| own.address == address)
    }

    /// Chooses what pods are masqueraded behind in the family of `v4`, out of the interface
    /// `uplink`.
    ///
    /// `others`: indices of the other uplinks. `former`: what it was before.
    pub(crate) fn choose(
        &self,
        v4: bool,
        uplink: u32,
        others: &[u32],
        configured: Option<IpAddr>,
        former: Option<IpAddr>,
    ) -> Option<(IpAddr, MasqueradeRule)> {
        if let Some(address) = configured {
            let configured = (address, MasqueradeRule::Configured);
            return self.has(address).then_some(configured);
        }
        let sources = self
            .sources
            .iter()
            .filter(|(index, source)| *index == uplink && source.is_ipv4() == v4)
            .map(|&(_, source)| source)
            .filter(|&source| self.stands(source, |_| true, &[Standing::Good]));
        if let Some(source) = the_former_or_first(sources, former) {
            return Some((source, MasqueradeRule::Route));
        }
        let first_on = |interface: u32| {
            let good = |own: &&Own| {
                own.interface == interface
                    && own.address.is_ipv4() == v4
                    && own.standing == Standing::Good
            };
            self.own.iter().find(good).map(|own| own.address)
        };
        let fresh = first_on(uplink)
            .map(|address| (address, MasqueradeRule::Uplink))
            .or_else(|| Some((first_on(LOOPBACK)?, MasqueradeRule::Loopback)));
        let former = former.filter(|former| former.is_ipv4() == v4);
        let here = |interface| interface == uplink || !others.contains(&interface);
        let kept = |standings| former.filter(|&former| self.stands(former, here, standings));
        match (kept(&[Standing::Good, Standing::Tentative]), fresh) {
            (Some(kept), Some((address, rule))) if kept == address => Some((kept, rule)),
            (Some(kept), _) => Some((kept, MasqueradeRule::Kept)),
            (None, Some(fresh)) => Some(fresh),
            (None, None) => Some((kept(&[Standing::Deprecated])?, MasqueradeRule::Kept)),
        }
    }

    /// Whether an interface that counts has the address in one of these standings.
    fn stands(
        &self,
        address: IpAddr,
        counts: impl Fn(u32) -> bool,
        standings: &[Standing],
    ) -> bool {
        self.own.iter().any(|own| {
            own.address == address && counts(own.interface) && standings.contains(&own.standing)
        })
    }
}

fn the_former_or_first(
    mut sources: impl Iterator<Item = IpAddr> + Clone,
    former: Option<IpAddr>,
) -> Option<IpAddr> {
    let again = sources.clone().find(|&source| Some(source) == former);
    again.or_else(|| sources.next())
}

/// Addresses that could be masqueraded behind, in order.
///
/// The kernel lists IPv4 addresses in the order in which they were added (`__inet_insert_ifa`,
/// `net/ipv4/devinet.c`), and IPv6 addresses the other way round (`ipv6_link_dev_addr`,
/// `net/ipv6/addrconf.c`).
fn own(addresses: &[Address]) -> Vec<Own> {
    let of_family = |v4: bool| {
        let candidate = move |address: &&Address| {
            let ip = address.net.addr();
            let temporary = address.secondary && !v4;
            address.scope == Scope::Universe
                && ip.is_ipv4() == v4
                && !ip.is_loopback()
                && !address.duplicate
                && !temporary
        };
        addresses.iter().filter(candidate)
    };
    let mut found: Vec<&Address> = of_family(true).chain(of_family(false).rev()).collect();
    found.sort_by_key(|address| !address.permanent);
    let own = found.into_iter().map(|address| Own {
        address: address.net.addr(),
        interface: address.index,
        standing: match (address.tentative, address.deprecated) {
            (true, _) => Standing::Tentative,
            (false, true) => Standing::Deprecated,
            (false, false) => Standing::Good,
        },
    });
    own.collect()
}

/// Preferred sources of default routes, the lowest metric first.
fn sources(routes: &[Route]) -> Vec<(u32, IpAddr)> {
    let mut defaults: Vec<&Route> = routes
        .iter()
        .filter(|route| route.destination.prefix_len() == 0 && route.kind == RouteKind::Unicast)
        .collect();
    defaults.sort_by_key(|route| route.metric.unwrap_or(0));
    let each = defaults.into_iter().flat_map(|route| {
        let hops = route.next_hops.iter().map(|hop| hop.index);
        let interfaces = route.index.into_iter().chain(hops);
        interfaces.filter_map(|index| Some((index, route.source?)))
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UPLINK: u32 = 2;
    const OTHER: u32 = 3;
    const DUMMY: u32 = 9;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// What a node has, and what is chosen, out of eth0: addresses on their interfaces, `~` before
    /// deprecated ones and `?` before tentative ones; sources of default routes, the lowest metric
    /// first; what is configured; what it was before.
    const CASES: &str = "
        one                        | eth0 .11              |                 |     |     | .11 uplink
        the oldest                 | eth0 .11 eth0 .12     |                 |     |     | .11 uplink
        another was first          | eth0 .12 eth0 .11     |                 |     | .11 | .11 kept
        as before, and first       | eth0 .11 eth0 .12     |                 |     | .11 | .11 uplink
        gone                       | eth0 .12              |                 |     | .11 | .12 uplink
        back                       | eth0 .12 eth0 .11     |                 |     | .12 | .12 uplink
        configured                 | eth0 .11 eth0 .12     |                 | .12 | .11 | .12 configured
        configured, on lo          | eth0 .11 lo .1        |                 | .1  |     | .1 configured
        configured, against routes | eth0 .11 eth0 .12     | eth0 .11        | .12 |     | .12 configured
        configured and gone        | eth0 .11 eth0 .12     |                 | .99 | .11 |
        source of the route        | eth0 .11 lo .1        | eth0 .1         |     |     | .1 route
        the route came later       | eth0 .11 lo .1        | eth0 .1         |     | .11 | .1 route
        the route has gone         | eth0 .11 lo .1        |                 |     | .1  | .1 kept
        the source is not there    | eth0 .11 eth0 .12     | eth0 .1         |     |     | .11 uplink
        the source is deprecated   | eth0 .11 lo ~.1       | eth0 .1         |     |     | .11 uplink
        another uplink's route     | eth0 .11 eth0 .12     | eth1 .12        |     |     | .11 uplink
        the lowest metric          | eth0 .11 eth0 .12     | eth0 .12 eth0 .11 |   |     | .12 route
        one route as before        | eth0 .11 eth0 .12     | eth0 .12 eth0 .11 |   | .11 | .11 route
        lo                         | lo .1                 |                 |     |     | .1 loopback
        lo, as before              | lo .1                 |                 |     | .1  | .1 loopback
        lo comes last              | eth0 .11 lo .1        |                 |     |     | .11 uplink
        no other interface         | dummy0 .1             |                 |     |     |
        unless the route says so   | eth0 .11 dummy0 .1    | eth0 .1         |     |     | .1 route
        also while it flaps        | eth0 .11 dummy0 .1    |                 |     | .1  | .1 kept
        moved to another uplink    | eth1 .11 eth0 .12     |                 |     | .11 | .12 uplink
        deprecated                 | eth0 ~.11 eth0 .12    |                 |     |     | .12 uplink
        deprecated now             | eth0 ~.11 eth0 .12    |                 |     | .11 | .12 uplink
        deprecated, no other       | eth0 ~.11             |                 |     | .11 | .11 kept
        deprecated from the start  | eth0 ~.11             |                 |     |     |
        tentative                  | eth0 ?.11 eth0 .12    |                 |     |     | .12 uplink
        tentative again            | eth0 ?.11 eth0 .12    |                 |     | .11 | .11 kept
        nothing                    |                       |                 |     | .11 |
    ";

    #[test]
    fn the_rule_step_by_step() {
        let address = |text: &str, v4: bool| {
            let number = text.strip_prefix('.').unwrap();
            ip(&format!(
                "{}{number}",
                if v4 { "192.0.2." } else { "2001:db8::" }
            ))
        };
        let interface = |name: &str| match name {
            "lo" => LOOPBACK,
            "eth0" => UPLINK,
            "eth1" => OTHER,
            _ => DUMMY,
        };
        let pairs = |text: &str| {
            let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            let pairs = words
                .chunks(2)
                .map(|pair| (interface(&pair[0]), pair[1].clone()));
            pairs.collect::<Vec<_>>()
        };
        let mut count = 0;
        for case in CASES.lines().filter(|line| line.contains('|')) {
            let fields: Vec<&str> = case.split('|').map(str::trim).collect();
            for v4 in [true, false] {
                let one = |text: &str| (!text.is_empty()).then(|| address(text, v4));
                let own = |(interface, text): (u32, String)| Own {
                    address: address(text.trim_start_matches(['~', '?']), v4),
                    interface,
                    standing: match text.as_bytes()[0] {
                        b'~' => Standing::Deprecated,
                        b'?' => Standing::Tentative,
                        _ => Standing::Good,
                    },
                };
                let sources = pairs(fields[2]).into_iter();
                let choice = Choice {
                    own: pairs(fields[1]).into_iter().map(own).collect(),
                    sources: sources.map(|(on, text)| (on, address(&text, v4))).collect(),
                };
                let choose =
                    |v4| choice.choose(v4, UPLINK, &[OTHER], one(fields[3]), one(fields[4]));
                let said = choose(v4).map(|(address, rule)| {
                    let rule = serde_json::to_value(rule).unwrap();
                    (address, rule.as_str().unwrap().to_owned())
                });
                let wanted = fields[5].split_once(' ');
                let wanted = wanted.map(|(text, rule)| (address(text, v4), rule.to_owned()));
                assert_eq!(said, wanted, "{}", fields[0]);
                if fields[3].is_empty() {
                    assert_eq!(
                        choose(!v4),
                        None,
                        "{}: nothing of the other family",
                        fields[0]
                    );
                }
                count += 1;
            }
        }
        assert_eq!(count, 64);
    }

    #[test]
    fn routes_are_read_in_the_order_of_their_metrics() {
        let to = |net: &str| Route::to(net.parse().unwrap());
        let routes = [
            to("0.0.0.0/0").dev(2).metric(200).source(ip("192.0.2.2")),
            to("0.0.0.0/0").dev(3).source(ip("192.0.2.3")),
            to("10.0.0.0/8").dev(2).source(ip("192.0.2.4")),
            to("0.0.0.0/0").dev(4).metric(100),
            to("0.0.0.0/0").dev(2).metric(100).source(ip("192.0.2.5")),
            to("::/0").dev(2).metric(1024).source(ip("2001:db8::5")),
            to("0.0.0.0/0")
                .kind(RouteKind::Unreachable)
                .source(ip("192.0.2.6")),
        ];
        let found = sources(&routes);
        let wanted = [
            (3, "192.0.2.3"),
            (2, "192.0.2.5"),
            (2, "192.0.2.2"),
            (2, "2001:db8::5"),
        ];
        assert_eq!(found, wanted.map(|(on, source)| (on, ip(source))));
    }

    fn standing() -> impl Strategy<Value = Standing> {
        prop_oneof![
            3 => Just(Standing::Good),
            1 => Just(Standing::Tentative),
            1 => Just(Standing::Deprecated),
        ]
    }

    fn any_own() -> impl Strategy<Value = Own> {
        let interface = prop_oneof![Just(LOOPBACK), Just(UPLINK), Just(OTHER), Just(DUMMY)];
        let address = prop_oneof![
            (1..20_u8).prop_map(|last| IpAddr::from([192, 0, 2, last])),
            (1..20_u16).prop_map(|last| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last])),
        ];
        (interface, address, standing()).prop_map(|(interface, address, standing)| Own {
            address,
            interface,
            standing,
        })
    }

    fn any_choice() -> impl Strategy<Value = Choice> {
        let own = proptest::collection::vec(any_own(), 0..12);
        let sources = proptest::collection::vec(any_own(), 0..4);
        (own, sources).prop_map(|(own, sources)| Choice {
            own,
            sources: sources
                .iter()
                .map(|own| (own.interface, own.address))
                .collect(),
        })
    }

    proptest! {
        #[test]
        fn what_was_chosen_stays(choice in any_choice(), former in any_own(), v4: bool) {
            let choose = |former| choice.choose(v4, UPLINK, &[OTHER], None, former);
            if let Some((address, _)) = choose(Some(former.address)) {
                let (again, _) = choose(Some(address)).unwrap();
                prop_assert_eq!(again, address);
            }
        }

        #[test]
        fn one_more_address_changes_nothing(
            choice in any_choice(),
            more in any_own(),
            at in any::<prop::sample::Index>(),
            v4: bool,
        ) {
            let Some((address, _)) = choice.choose(v4, UPLINK, &[OTHER], None, None) else {
                return Ok(());
            };
            let mut larger = choice.clone();
            larger.own.insert(at.index(choice.own.len() + 1), more);
            let now = larger.choose(v4, UPLINK, &[OTHER], None, Some(address));
            let (now, rule) = now.unwrap();
            // Unless a route that is there names the new one.
            prop_assert!(now == address || rule == MasqueradeRule::Route && now == more.address);
        }

        #[test]
        fn it_is_the_nodes_own_and_good(choice in any_choice(), former in any_own(), v4: bool) {
            let found = choice.choose(v4, UPLINK, &[OTHER], None, Some(former.address));
            if let Some((address, rule)) = found {
                prop_assert_eq!(address.is_ipv4(), v4);
                let good = choice.stands(address, |_| true, &[Standing::Good]);
                prop_assert!(good || address == former.address && rule == MasqueradeRule::Kept);
                prop_assert!(choice.has(address));
            }
        }
    }
}
