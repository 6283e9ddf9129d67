//! [`Env`] over BPF maps and helpers.

use aya_ebpf::bindings::{
    __sk_buff, BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_PROHIBIT,
    BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNREACHABLE, BPF_NOEXIST,
};
use aya_ebpf::helpers::generated::{
    bpf_check_mtu, bpf_fib_lookup, bpf_get_prandom_u32, bpf_jiffies64, bpf_ktime_get_coarse_ns,
    bpf_ktime_get_ns, bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release, bpf_skb_load_bytes,
};
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray};
use datapath_kern::abi::Mac;
use datapath_kern::abi::addr::Addr;
use datapath_kern::abi::budget::Budget;
use datapath_kern::abi::config::Settings;
use datapath_kern::abi::endpoint::Endpoint;
use datapath_kern::abi::event::{Event, FRAME_BYTES, Head, Window};
use datapath_kern::abi::flow::{Flow, FlowKey};
use datapath_kern::abi::fragment::{Fragment, FragmentKey};
use datapath_kern::abi::ipcache::IpEntry;
use datapath_kern::abi::metric::{Direction, index};
use datapath_kern::abi::nexthop::{Claim, NextHop, kind};
use datapath_kern::abi::policy::{PeerKey, PortKey, PortVerdict};
use datapath_kern::abi::quota::Quota;
use datapath_kern::abi::search::{PortSearch, Refusal};
use datapath_kern::abi::tally::Tally;
use datapath_kern::abi::tunnel::{Peer, Uplink};
use datapath_kern::env::{Env, Fib, FibQuery, InsertError, Table};
use datapath_kern::packet::Packet;
use datapath_kern::stage::apart::Apart;
use datapath_kern::verdict::DropReason;
use datapath_kern::wire::ip::protocol;
use datapath_kern::work::Work;

use super::apart;
use super::arguments::{self, FibLookup};
use super::maps;
use super::resize::{Established, Pending, Resizable};

/// The kernel as the packet logic's environment.
pub(super) struct Kernel {
    /// The packet's context, which the routing table wants to see.
    ctx: *mut __sk_buff,
}

impl Kernel {
    /// The environment of the program that was entered with `ctx`.
    #[inline(always)]
    pub(super) const fn new(ctx: *mut __sk_buff) -> Self {
        Self { ctx }
    }
}

datapath_kern::settings_by_volatile_load!(Kernel, &raw const maps::CONFIG);

/// A BPF map behind [`Table`].
pub(super) struct Map<M: 'static>(pub(super) &'static M);

/// What the kernel means by an error of `bpf_map_update_elem`.
#[inline(always)]
const fn refusal(errno: i32) -> InsertError {
    match errno {
        // EEXIST
        -17 => InsertError::Exists,
        // E2BIG, ENOSPC
        -7 | -28 => InsertError::Full,
        // ENOMEM
        -12 => InsertError::NoMemory,
        // EBUSY
        -16 => InsertError::Busy,
        _ => InsertError::Other,
    }
}

macro_rules! hash_table {
    ($kind:ident) => {
        impl<K, V: Copy> Table<K, V> for Map<$kind<K, V>> {
            #[inline(always)]
            fn get(&self, key: &K) -> Option<V> {
                // SAFETY: the pointer is valid until the program ends. The element may be reused
                // for another key meanwhile, which `Table` documents.
                self.0.get_ptr(key).map(|value| unsafe { *value })
            }

            #[inline(always)]
            fn update<R>(&self, key: &K, change: impl FnOnce(&mut V) -> R) -> Option<R> {
                // SAFETY: as for `get`; other CPUs may write the same value, field by field.
                self.0
                    .get_ptr_mut(key)
                    .map(|value| change(unsafe { &mut *value }))
            }

            #[inline(always)]
            fn insert(&self, key: &K, value: &V) -> Result<(), InsertError> {
                self.0
                    .insert(key, value, u64::from(BPF_NOEXIST))
                    .map_err(refusal)
            }

            #[inline(always)]
            fn remove(&self, key: &K) -> bool {
                self.0.remove(key).is_ok()
            }
        }
    };
}

hash_table!(HashMap);
hash_table!(LruHashMap);

macro_rules! array_table {
    ($kind:ident) => {
        impl<V: Copy> Table<u32, V> for Map<$kind<V>> {
            #[inline(always)]
            fn get(&self, key: &u32) -> Option<V> {
                // SAFETY: elements of an array live as long as the map.
                self.0.get_ptr(*key).map(|value| unsafe { *value })
            }

            #[inline(always)]
            fn update<R>(&self, key: &u32, change: impl FnOnce(&mut V) -> R) -> Option<R> {
                // SAFETY: as for `get`; where the array is not per CPU, others may write the same
                // value, field by field.
                self.0
                    .get_ptr_mut(*key)
                    .map(|value| change(unsafe { &mut *value }))
            }

            #[inline(always)]
            fn insert(&self, _: &u32, _: &V) -> Result<(), InsertError> {
                // Every element of an array exists.
                Err(InsertError::Exists)
            }

            #[inline(always)]
            fn remove(&self, _: &u32) -> bool {
                false
            }
        }
    };
}

array_table!(Array);
array_table!(PerCpuArray);

impl Env for Kernel {
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "136 years of uptime fit")]
    fn now_s(&self) -> u32 {
        // SAFETY: a helper without arguments.
        (unsafe { bpf_ktime_get_coarse_ns() } / 1_000_000_000) as u32
    }

    #[inline(always)]
    fn tick(&self) -> u64 {
        // The tick of the kernel advances both clocks (`tick_do_update_jiffies64`,
        // kernel/time/tick-sched.c), this one first: another CPU may see the former second for one
        // tick more. No call: the verifier puts a load in its place.
        // SAFETY: a helper without arguments.
        unsafe { bpf_jiffies64() }
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn flows(&self) -> impl Table<FlowKey, Flow> {
        Resizable::<Established>::new()
    }

    #[inline(always)]
    fn pending(&self) -> impl Table<FlowKey, Flow> {
        Resizable::<Pending>::new()
    }

    #[inline(always)]
    fn endpoints(&self) -> impl Table<u32, Endpoint> {
        Map(&maps::ENDPOINTS)
    }

    #[inline(always)]
    fn endpoint_slots(&self) -> impl Table<u32, u32> {
        Map(&maps::ENDPOINT_SLOTS)
    }

    #[inline(always)]
    fn peers(&self) -> impl Table<u32, Peer> {
        Map(&maps::PEERS)
    }

    #[inline(always)]
    fn peer_indices(&self) -> impl Table<Addr, u32> {
        Map(&maps::PEER_INDICES)
    }

    #[inline(always)]
    fn next_hops(&self) -> impl Table<u32, NextHop> {
        Map(&maps::NEXT_HOPS)
    }

    #[inline(always)]
    fn claims(&self) -> impl Table<u32, Claim> {
        Map(&maps::CLAIMS)
    }

    #[inline(always)]
    fn fragments(&self) -> impl Table<FragmentKey, Fragment> {
        Map(&maps::FRAGMENTS)
    }

    #[inline(always)]
    fn fragment_ids(&self) -> impl Table<FragmentKey, u32> {
        Map(&maps::FRAGMENT_IDS)
    }

    #[inline(always)]
    fn budgets(&self) -> impl Table<u32, Budget> {
        Map(&maps::BUDGETS)
    }

    #[inline(always)]
    fn quotas(&self) -> impl Table<u32, Quota> {
        Map(&maps::QUOTAS)
    }

    #[inline(always)]
    fn tally(&self, what: Tally, count: u64) {
        Map(&maps::TALLY).update(&what.index(), |cell| *cell = cell.wrapping_add(count));
    }

    #[inline(always)]
    fn port_searches(&self) -> impl Table<FlowKey, PortSearch> {
        Map(&maps::PORT_SEARCHES)
    }

    #[inline(always)]
    fn refusals(&self) -> impl Table<u32, Refusal> {
        Map(&maps::REFUSALS)
    }

    #[inline(always)]
    fn apart(&self, stage: Apart, work: &mut Work) -> Result<(), DropReason> {
        apart::call(stage, self.ctx, work)
    }

    #[inline(always)]
    fn excluded_ports(&self) -> impl Table<u32, u64> {
        Map(&maps::EXCLUDED_PORTS)
    }

    #[inline(never)]
    fn is_of_socket(&self, key: &FlowKey) -> bool {
        is_of_socket(self.ctx, key)
    }

    #[inline(always)]
    fn uplinks(&self) -> impl Table<u32, Uplink> {
        Map(&maps::UPLINKS)
    }

    #[inline(always)]
    fn ipcache(&self, address: &Addr) -> Option<IpEntry> {
        let arguments = arguments::mine()?;
        arguments.address = Key::new(128, *address);
        maps::IPCACHE.get(&arguments.address).copied()
    }

    #[inline(always)]
    fn policy_peers(&self) -> impl Table<PeerKey, u32> {
        Map(&maps::POLICY_PEERS)
    }

    #[inline(always)]
    fn policy_port(&self, key: &PortKey) -> Option<PortVerdict> {
        let arguments = arguments::mine()?;
        arguments.port = Key::new(PortKey::PORT_BITS, *key);
        maps::POLICY_PORTS.get(&arguments.port).copied()
    }

    #[inline(never)]
    fn fib(&self, query: &FibQuery, hop: &mut NextHop) -> Fib {
        fib(self.ctx, self.host_interface(), query, hop)
    }

    #[inline(always)]
    fn count(&self, direction: Direction, outcome: u32, bytes: u32) {
        if let Some(cell) = maps::METRICS.get_ptr_mut(index(direction, outcome)) {
            // SAFETY: the element is this CPU's own, and programs are not preempted by others.
            let cell = unsafe { &mut *cell };
            cell.packets = cell.packets.wrapping_add(1);
            cell.bytes = cell.bytes.wrapping_add(u64::from(bytes));
        }
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn event_windows(&self) -> impl Table<u32, Window> {
        Map(&maps::EVENT_WINDOWS)
    }

    #[inline(always)]
    fn emit<P: Packet>(&self, pkt: &P, head: &Head) -> bool {
        emit(self.ctx, pkt.len(), head)
    }
}

/// Bounds the bytes of a frame that an event takes, less one. Loaded each time: the compiler would
/// leave out a mask that it knows to change nothing.
static CAPTURED_MASK: u32 = FRAME_BYTES as u32 - 1;
const _: () = assert!(FRAME_BYTES.is_power_of_two());

/// Writes an event into the ring buffer, unless that is full.
#[inline(always)]
fn emit(ctx: *mut __sk_buff, length: u32, head: &Head) -> bool {
    const ALL: u32 = FRAME_BYTES as u32;
    let Some(mut record) = maps::EVENTS.reserve::<Event>(0) else {
        return false;
    };
    let event = record.as_mut_ptr();
    // SAFETY: the record has room for an event, and is written in place: the stack has no room
    // for another. The helper is told how much of the frame there is room for.
    unsafe {
        let captured = if length < ALL {
            (&raw mut (*event).frame).write([0; FRAME_BYTES]);
            length
        } else {
            ALL
        };
        (&raw mut (*event).head).write(*head);
        let frame = (&raw mut (*event).frame).cast();
        // The verifier will have a length that is not zero, as a frame's never is. Before Linux 6.8
        // it does not learn that from a comparison.
        let mask = core::ptr::read_volatile(&raw const CAPTURED_MASK);
        let captured = (captured.wrapping_sub(1) & mask) + 1;
        let copied = bpf_skb_load_bytes(ctx.cast(), 0, frame, captured) == 0;
        (&raw mut (*event).head.captured).write(if copied { captured as u16 } else { 0 });
    }
    record.submit(0);
    true
}

/// `struct bpf_sock_tuple` of `include/uapi/linux/bpf.h`, IPv4: source, destination, ports; bytes.
const TUPLE_V4: u32 = 12;
/// As [`TUPLE_V4`], IPv6.
const TUPLE_V6: u32 = 36;

/// Looks for a socket in the network namespace of the packet's interface: on both kinds of pairs
/// that is the host's (`bpf_skc_lookup`, `net/core/filter.c`; `netkit_xmit`,
/// `drivers/net/netkit.c`).
#[inline(always)]
fn is_of_socket(ctx: *mut __sk_buff, key: &FlowKey) -> bool {
    let tcp = key.protocol == protocol::TCP;
    if !tcp && key.protocol != protocol::UDP {
        return false;
    }
    let Some(arguments) = arguments::mine() else {
        return false;
    };
    let ports: u32 = zerocopy::transmute!([key.source_port, key.destination_port]);
    let tuple = &mut arguments.tuple;
    let length = if key.source.is_v4() {
        let [a, b, c, ..] = tuple;
        (*a, *b, *c) = (key.source.v4_word(), key.destination.v4_word(), ports);
        TUPLE_V4
    } else {
        let ([a, b, c, d], [e, f, g, h]) = (key.source.words(), key.destination.words());
        *tuple = [a, b, c, d, e, f, g, h, ports];
        TUPLE_V6
    };
    let tuple = tuple.as_mut_ptr().cast();
    let netns = u64::MAX; // BPF_F_CURRENT_NETNS
    // SAFETY: the context pointer is the skb's, the tuple is of the length that the helper is
    // told, and what was found is given back at once.
    unsafe {
        let socket = if tcp {
            bpf_sk_lookup_tcp(ctx.cast(), tuple, length, netns, 0)
        } else {
            bpf_sk_lookup_udp(ctx.cast(), tuple, length, netns, 0)
        };
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket.cast());
    }
    true
}

/// What stays in the place of the MTU where the kernel writes none.
const UNKNOWN_MTU: u16 = 1;

/// `AF_INET`.
const INET: u8 = 2;
/// `AF_INET6`.
const INET6: u8 = 10;

/// Asks as if the packet had come in on `interface`, whose forwarding flag must be set.
#[inline(always)]
fn fib(ctx: *mut __sk_buff, interface: u32, query: &FibQuery, hop: &mut NextHop) -> Fib {
    let v4 = query.destination.is_v4();
    let words = |address: &Addr| {
        if v4 {
            [address.v4_word(), 0, 0, 0]
        } else {
            address.words()
        }
    };
    let Some(arguments) = arguments::mine() else {
        return Fib::Stack;
    };
    let lookup = &mut arguments.fib;
    *lookup = FibLookup {
        family: if v4 { INET } else { INET6 },
        protocol: 0,
        source_port: 0,
        destination_port: 0,
        // Has the MTU of the route compared, and told; zero would compare the packet at hand with
        // the device's, which is not as long as it will be.
        total_len: UNKNOWN_MTU,
        interface,
        flow_info: 0,
        source: words(&query.source),
        destination: words(&query.destination),
        vlan: 0,
        source_mac: [0; 6],
        destination_mac: [0; 6],
    };
    // SAFETY: the context pointer is the skb's, remembered by the entry point; the struct has the
    // layout and the size that the helper is told.
    let answer = unsafe { bpf_fib_lookup(ctx.cast(), (&raw mut *lookup).cast(), 64, 0) };
    hop.gateway = if lookup.family == INET {
        let [word, ..] = lookup.destination;
        Addr::from_v4_word(word)
    } else {
        Addr::from_words(lookup.destination)
    };
    hop.interface = lookup.interface;
    hop.kind = kind::UNRESOLVED;
    hop.mtu_bytes = if lookup.total_len == UNKNOWN_MTU {
        0
    } else {
        lookup.total_len
    };
    match u32::try_from(answer) {
        Ok(BPF_FIB_LKUP_RET_SUCCESS) => {
            hop.destination_mac = lookup.destination_mac;
            hop.source_mac = lookup.source_mac;
            hop.kind = kind::RESOLVED;
            Fib::Found
        }
        Ok(BPF_FIB_LKUP_RET_NO_NEIGH) => {
            // The kernel looks for the neighbour before it tells the MTU.
            hop.mtu_bytes = device_mtu_bytes(ctx, hop.interface);
            Fib::Found
        }
        Ok(
            BPF_FIB_LKUP_RET_BLACKHOLE | BPF_FIB_LKUP_RET_UNREACHABLE | BPF_FIB_LKUP_RET_PROHIBIT,
        ) => Fib::Unreachable,
        _ => Fib::Stack,
    }
}

/// MTU of an interface; zero if there is none of that index.
#[inline(always)]
fn device_mtu_bytes(ctx: *mut __sk_buff, interface: u32) -> u16 {
    // In: the length to compare, where zero would be the packet's. Out: the MTU.
    let mut bytes = 1;
    // SAFETY: a helper on the program's own context, and a word for it to write.
    let code = unsafe { bpf_check_mtu(ctx.cast(), interface, &raw mut bytes, 0, 0) };
    match u16::try_from(bytes) {
        _ if code < 0 => 0,
        Ok(bytes) => bytes,
        Err(_) => u16::MAX,
    }
}
