//! The programs in the kernel: loaded, their maps filled from a [`Host`], run on one frame at a
//! time, and their tables compared with the host's.

use std::{
    collections::HashMap as StdMap,
    fmt::{self, Debug, Write},
    hash::Hash,
    ops::Range,
    time::Duration,
};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{
        Array, HashMap, MapData, PerCpuArray, PerCpuValues, RingBuf,
        lpm_trie::{Key, LpmTrie},
    },
    programs::{SchedClassifier, TestRun, TestRunOptions},
    util::nr_cpus,
};
use datapath_kern::{
    abi::{
        addr::Addr,
        budget::{Budget, MAX_BUDGETS},
        endpoint::{Endpoint, MAX_ENDPOINTS},
        event::{Event, VERDICTS, Window},
        flow::{Flow, FlowKey},
        fragment::{Fragment, FragmentKey},
        ipcache::IpEntry,
        mark,
        metric::{Counter, MAX_METRICS},
        nexthop::{Claim, MAX_NEXT_HOPS, NextHop},
        policy::{PeerKey, PortKey, PortVerdict},
        quota::Quota,
        search::{EXCLUDED_WORDS, MAX_REFUSALS, PortSearch, Refusal},
        tally::Tally,
        tunnel::{MAX_PEERS, Peer, Uplink},
    },
    env::Table,
    host::{Hook, Host},
    verdict::{Action, DropReason},
};
use datapath_user::{OBJECT, PROGRAMS};
use nix::{
    errno::Errno,
    time::{ClockId, clock_gettime},
};

/// Length of `struct __sk_buff` (include/uapi/linux/bpf.h), and where its fields are that a test
/// run takes from the caller.
const CONTEXT_LEN: usize = 192;
const CONTEXT_MARK: usize = 8;
const CONTEXT_INTERFACE: usize = 40;

/// The object's `arguments`: question to the routing table, key of the ipcache, in this range
/// `struct bpf_redir_neigh`, key of what classes say of ports, tuple of a socket, and bytes to sum up.
const ARGUMENTS_LEN: usize = 1436;
const NEIGHBOUR: Range<usize> = 84..104;

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) action: Action,
    /// The neighbour that the kernel is to resolve, if any.
    pub(crate) gateway: Addr,
    pub(crate) mark: u32,
    pub(crate) bytes: Vec<u8>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (action, mark, gateway) = (self.action, self.mark, self.gateway);
        let bytes = hex(&self.bytes);
        write!(f, "{bytes} {action:?} mark {mark:#x} neighbour {gateway}")
    }
}

/// Bytes in digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut digits, byte| {
        write!(digits, "{byte:02x}").unwrap();
        digits
    })
}

/// The programs and their maps.
pub(crate) struct Kernel {
    ebpf: Ebpf,
    flows: HashMap<MapData, FlowKey, Flow>,
    pending: HashMap<MapData, FlowKey, Flow>,
    claims: HashMap<MapData, u32, Claim>,
    fragments: HashMap<MapData, FragmentKey, Fragment>,
    fragment_ids: HashMap<MapData, FragmentKey, u32>,
    port_searches: HashMap<MapData, FlowKey, PortSearch>,
    refusals: Array<MapData, Refusal>,
    budgets: Array<MapData, Budget>,
    quotas: Array<MapData, Quota>,
    tally: PerCpuArray<MapData, u64>,
    next_hops: Array<MapData, NextHop>,
    endpoints: Array<MapData, Endpoint>,
    peers: Array<MapData, Peer>,
    metrics: PerCpuArray<MapData, Counter>,
    events: RingBuf<MapData>,
    event_windows: PerCpuArray<MapData, Window>,
    arguments: PerCpuArray<MapData, [u8; ARGUMENTS_LEN]>,
}

impl Kernel {
    /// Loads the object with the host's settings, and fills its maps with what the host's hold.
    pub(crate) fn like(host: &Host) -> Self {
        let mut ebpf = EbpfLoader::new()
            .override_global("CONFIG", &host.config, true)
            .load(OBJECT)
            .unwrap_or_else(|error| panic!("{error}: loading needs root"));
        for name in PROGRAMS {
            let program: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
            program.load().unwrap();
        }
        fill_hash(&mut ebpf, "endpoint_slots", &host.endpoint_slots.entries());
        fill_hash(&mut ebpf, "peer_indices", &host.peer_indices.entries());
        fill_hash::<u32, Uplink>(&mut ebpf, "uplinks", &host.uplinks.entries());
        let map = ebpf.map_mut("ipcache").unwrap();
        let mut ipcache: LpmTrie<_, Addr, IpEntry> = map.try_into().unwrap();
        for (prefix, entry) in host.ipcache.borrow().entries() {
            let (bits, address) = prefix.parts();
            ipcache.insert(&Key::new(bits, address), entry, 0).unwrap();
        }
        fill_hash::<PeerKey, u32>(&mut ebpf, "policy_peers", &host.policy_peers.entries());
        let map = ebpf.map_mut("policy_ports").unwrap();
        let mut ports: LpmTrie<_, PortKey, PortVerdict> = map.try_into().unwrap();
        for (bits, key, verdict) in host.policy_ports.borrow().entries() {
            ports.insert(&Key::new(*bits, *key), verdict, 0).unwrap();
        }
        let mut take = |name| ebpf.take_map(name).unwrap();
        let mut kernel = Self {
            flows: take("flows").try_into().unwrap(),
            pending: take("pending").try_into().unwrap(),
            claims: take("claims").try_into().unwrap(),
            fragments: take("fragments").try_into().unwrap(),
            fragment_ids: take("fragment_ids").try_into().unwrap(),
            port_searches: take("port_searches").try_into().unwrap(),
            refusals: take("refusals").try_into().unwrap(),
            budgets: take("budgets").try_into().unwrap(),
            quotas: take("quotas").try_into().unwrap(),
            tally: take("tally").try_into().unwrap(),
            next_hops: take("next_hops").try_into().unwrap(),
            endpoints: take("endpoints").try_into().unwrap(),
            peers: take("peers").try_into().unwrap(),
            metrics: take("metrics").try_into().unwrap(),
            events: take("events").try_into().unwrap(),
            event_windows: take("event_windows").try_into().unwrap(),
            arguments: take("arguments").try_into().unwrap(),
            ebpf,
        };
        fill_array(&mut kernel.next_hops, MAX_NEXT_HOPS, &host.next_hops);
        let map = kernel.ebpf.map_mut("excluded_ports").unwrap();
        let mut excluded: Array<_, u64> = map.try_into().unwrap();
        for word in 0..EXCLUDED_WORDS {
            let bits = host.excluded_ports.get(&word).unwrap();
            excluded.set(word, bits, 0).unwrap();
        }
        kernel.refill(host);
        kernel
    }

    /// Writes the host's endpoints and peers again.
    pub(crate) fn refill(&mut self, host: &Host) {
        fill_array(&mut self.endpoints, MAX_ENDPOINTS, &host.endpoints);
        fill_array(&mut self.peers, MAX_PEERS, &host.peers);
    }

    /// Runs a program on a frame: `BPF_PROG_TEST_RUN`.
    ///
    /// # Errors
    ///
    /// The kernel's number where it does not take the frame for a test run.
    pub(crate) fn run(
        &mut self,
        hook: Hook,
        interface: u32,
        mark: u32,
        frame: &[u8],
    ) -> Result<Outcome, Errno> {
        let mut context = [0; CONTEXT_LEN];
        context[CONTEXT_MARK..][..4].copy_from_slice(&mark.to_ne_bytes());
        context[CONTEXT_INTERFACE..][..4].copy_from_slice(&interface.to_ne_bytes());
        let mut bytes = vec![0; frame.len() + 256];
        let mut context_out = [0; CONTEXT_LEN];
        let program = self.ebpf.program(hook.name()).unwrap();
        let program: &SchedClassifier = program.try_into().unwrap();
        let result = program.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut bytes),
            ctx_in: Some(&context),
            ctx_out: Some(&mut context_out),
            ..TestRunOptions::new()
        });
        let result = result.map_err(|error| errno(&error))?;
        bytes.truncate(usize::try_from(result.data_size_out).unwrap());
        let field = context_out[CONTEXT_MARK..][..4].try_into().unwrap();
        let before = mark;
        let mark = u32::from_ne_bytes(field);
        let (action, gateway) = self.action(result.return_value, before, mark);
        Ok(Outcome {
            action,
            gateway,
            mark,
            bytes,
        })
    }

    /// What a return code stands for. All redirects have one code: they are told apart by the mark
    /// that goes with them, and by what was asked of `bpf_redirect_neigh`.
    fn action(&mut self, code: u32, before: u32, mark: u32) -> (Action, Addr) {
        /// `TCX_NEXT`, `TCX_DROP`, `TCX_REDIRECT`.
        const NEXT: u32 = u32::MAX;
        const DROP: u32 = 2;
        const REDIRECT: u32 = 7;
        match code {
            NEXT => (Action::Pass, Addr::NONE),
            // Copies of it go on.
            DROP if mark::is(mark, mark::PIECE) && !mark::is(before, mark::PIECE) => {
                (Action::Consumed, Addr::NONE)
            }
            DROP => (Action::Drop, Addr::NONE),
            REDIRECT => match self.take_neighbour() {
                Some(gateway) => (Action::OutToNeighbour, gateway),
                None if mark::is(mark, mark::TO_HOST) => (Action::ToHost, Addr::NONE),
                None if mark::is(mark, mark::FORWARDED) => (Action::Out, Addr::NONE),
                None => (Action::IntoPod, Addr::NONE),
            },
            other => panic!("return code {other}"),
        }
    }

    /// The neighbour that the last program named, if it did.
    fn take_neighbour(&mut self) -> Option<Addr> {
        let cpus = self.arguments.get(&0, 0).unwrap();
        let zero = [0; ARGUMENTS_LEN];
        let named = cpus.iter().find(|cpu| cpu[NEIGHBOUR] != zero[NEIGHBOUR])?;
        let (family, words) = named[NEIGHBOUR].split_at(4);
        let family = u32::from_ne_bytes(family.try_into().unwrap());
        let words: [u8; 16] = words.try_into().unwrap();
        let gateway = match family {
            2 => Addr::from_v4_bytes(words[..4].try_into().unwrap()),
            10 => std::net::IpAddr::from(words).into(),
            other => panic!("address family {other}"),
        };
        let none = vec![zero; nr_cpus().unwrap()];
        let none = PerCpuValues::try_from(none).unwrap();
        self.arguments.set(0, none, 0).unwrap();
        Some(gateway)
    }

    /// A counter, of all CPUs together.
    pub(crate) fn counter(&self, cell: u32) -> Counter {
        let cpus = self.metrics.get(&cell, 0).unwrap();
        let sum = |part: fn(&Counter) -> u64| cpus.iter().map(part).sum();
        Counter {
            packets: sum(|cpu| cpu.packets),
            bytes: sum(|cpu| cpu.bytes),
        }
    }

    /// The events that the last program told, in order.
    pub(crate) fn take_events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(record) = self.events.next() {
            let whole = Event::from_bytes(&record);
            events.push(whole.unwrap_or_else(|| panic!("{} bytes are no event", record.len())));
        }
        events
    }

    /// How many events of a window were suppressed and lost, on all CPUs together.
    fn untold(&self, window: u32) -> (u64, u64) {
        let cpus = self.event_windows.get(&window, 0).unwrap();
        let sum = |part: fn(&Window) -> u64| cpus.iter().map(part).sum();
        (sum(|cpu| cpu.suppressed), sum(|cpu| cpu.lost))
    }

    /// Compares all that the programs wrote with the host's: both tables of flows, claims, next
    /// hops, packets in fragments and their identifications, port searches, refusals, budgets,
    /// quotas, tallies, and `counters` by cell.
    pub(crate) fn compare(&self, host: &Host, counters: &StdMap<u32, Counter>) {
        let mut pairs = StdMap::new();
        same_flows("flows", &self.flows, &host.flows.entries(), &mut pairs);
        same_flows(
            "pending",
            &self.pending,
            &host.pending.entries(),
            &mut pairs,
        );
        let claims = self.claims.iter().map(Result::unwrap);
        same("claims", claims, host.claims.entries());
        let fragments = self.fragments.iter().map(Result::unwrap);
        same("fragments", fragments, host.fragments.entries());
        let ids = self.fragment_ids.iter().map(Result::unwrap);
        same("fragment_ids", ids, host.fragment_ids.entries());
        let searches = self.port_searches.iter().map(Result::unwrap);
        same("port_searches", searches, host.port_searches.entries());
        for slot in 0..MAX_REFUSALS {
            let found = self.refusals.get(&slot, 0).unwrap();
            let expected = host.refusals.get(&slot).unwrap();
            assert_eq!(found, expected, "kernel, host: refusal {slot}");
        }
        for cell in 0..MAX_METRICS {
            let expected = counters.get(&cell).copied().unwrap_or_default();
            assert_eq!(self.counter(cell), expected, "kernel, host: counter {cell}");
        }
        let reasons = DropReason::ALL.iter().map(|reason| reason.code());
        for number in reasons.chain([VERDICTS]) {
            let found = self.untold(number);
            let window = host.event_windows.get(&number).unwrap();
            let expected = (window.suppressed, window.lost);
            assert_eq!(found, expected, "kernel, host: untold of window {number}");
        }
        for slot in 0..MAX_BUDGETS {
            let spent = self.budgets.get(&slot, 0).unwrap();
            let expected = host.budgets.get(&slot).unwrap();
            assert_eq!(spent, expected, "kernel, host: budget {slot}");
        }
        for slot in 0..16 {
            let has = self.quotas.get(&slot, 0).unwrap();
            let expected = host.quotas.get(&slot).unwrap();
            assert_eq!(has, expected, "kernel, host: quota {slot}");
        }
        for tally in Tally::ALL {
            let found: u64 = self.tally.get(&tally.index(), 0).unwrap().iter().sum();
            assert_eq!(found, host.tallied(*tally), "kernel, host: {tally:?}");
        }
        let claimed = host.claims.entries().into_iter().map(|(slot, _)| slot);
        let written = (0..MAX_NEXT_HOPS)
            .filter(|slot| host.next_hops.get(slot).is_some_and(|hop| hop.kind != 0));
        for slot in claimed.chain(written) {
            let hop = self.next_hops.get(&slot, 0).unwrap();
            let expected = host.next_hops.get(&slot).unwrap();
            assert_eq!(hop, expected, "kernel, host: next hop {slot}");
        }
    }

    /// Changes a flow, in whichever table; takes it out where `change` says no.
    pub(crate) fn edit(&mut self, key: &FlowKey, change: impl Fn(&mut Flow) -> bool) {
        for table in [&mut self.flows, &mut self.pending] {
            if let Ok(mut flow) = table.get(key, 0) {
                if change(&mut flow) {
                    table.insert(key, flow, 0).unwrap();
                } else {
                    table.remove(key).unwrap();
                }
            }
        }
    }
}

/// Seconds on the clock that the programs read, and what is left of this one.
pub(crate) fn clock() -> (u32, Duration) {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).unwrap());
    let second = u32::try_from(now.as_secs()).unwrap();
    let left = Duration::from_secs(now.as_secs() + 1).checked_sub(now);
    (second, left.unwrap())
}

fn errno(error: &aya::programs::ProgramError) -> Errno {
    let aya::programs::ProgramError::SyscallError(call) = error else {
        panic!("{error}");
    };
    let raw = call.io_error.raw_os_error();
    Errno::from_raw(raw.unwrap_or_else(|| panic!("{error}")))
}

fn fill_hash<K: Pod, V: Pod>(ebpf: &mut Ebpf, name: &str, entries: &[(K, V)]) {
    let mut map: HashMap<_, K, V> = ebpf.map_mut(name).unwrap().try_into().unwrap();
    for (key, value) in entries {
        map.insert(key, value, 0).unwrap();
    }
}

/// What is zero in the host's is so in a map that was just made.
fn fill_array<V: Pod + Default + PartialEq>(
    map: &mut Array<MapData, V>,
    length: u32,
    table: &impl Table<u32, V>,
) {
    for slot in 0..length {
        let value = table.get(&slot).unwrap();
        if value != V::default() {
            map.set(slot, value, 0).unwrap();
        }
    }
}

/// Compares flows. `pair` is a random number: those of the two sides must go together.
fn same_flows(
    name: &str,
    kernel: &HashMap<MapData, FlowKey, Flow>,
    host: &[(FlowKey, Flow)],
    pairs: &mut StdMap<u32, u32>,
) {
    let kernel: Vec<_> = kernel.iter().map(Result::unwrap).collect();
    let of_kernel: StdMap<_, _> = kernel.iter().copied().collect();
    for (key, flow) in host {
        if let Some(found) = of_kernel.get(key) {
            let known = *pairs.entry(flow.pair).or_insert(found.pair);
            assert_eq!(found.pair, known, "kernel, host: {name}: halves of {key:?}");
        }
    }
    let without = |(key, flow): &(FlowKey, Flow)| (*key, Flow { pair: 0, ..*flow });
    same(name, kernel.iter().map(without), host.iter().map(without));
}

fn same<K: Eq + Hash + Debug, V: PartialEq + Debug>(
    name: &str,
    kernel: impl IntoIterator<Item = (K, V)>,
    host: impl IntoIterator<Item = (K, V)>,
) {
    let mut kernel: StdMap<K, V> = kernel.into_iter().collect();
    for (key, expected) in host {
        let found = kernel.remove(&key);
        assert_eq!(
            found.as_ref(),
            Some(&expected),
            "kernel, host: {name}: {key:?}"
        );
    }
    assert!(kernel.is_empty(), "{name}: the kernel alone has {kernel:?}");
}
