//! Every map of the object. Sizes are what user space sets at load; these are the defaults.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::LpmTrie;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use datapath_kern::abi::addr::Addr;
use datapath_kern::abi::budget::{Budget, MAX_BUDGETS};
use datapath_kern::abi::config::Config;
use datapath_kern::abi::endpoint::{Endpoint, MAX_ENDPOINTS};
use datapath_kern::abi::event::{RING_BYTES, WINDOWS, Window};
use datapath_kern::abi::flow::{Flow, FlowKey};
use datapath_kern::abi::fragment::{Fragment, FragmentKey, MAX_FRAGMENTS};
use datapath_kern::abi::ipcache::IpEntry;
use datapath_kern::abi::metric::{Counter, MAX_METRICS};
use datapath_kern::abi::nexthop::{CLAIMED, Claim, MAX_NEXT_HOPS, NextHop};
use datapath_kern::abi::policy::{
    MAX_PEER_CLASSES, MAX_PORT_VERDICTS, PeerKey, PortKey, PortVerdict,
};
use datapath_kern::abi::quota::Quota;
use datapath_kern::abi::search::{EXCLUDED_WORDS, MAX_REFUSALS, MAX_SEARCHES, PortSearch, Refusal};
use datapath_kern::abi::tally::MAX_TALLIES;
use datapath_kern::abi::tunnel::{MAX_PEERS, Peer, Uplink};
use datapath_kern::work::Work;

use super::arguments::Arguments;

/// Settings of this load; user space writes them into the object before it loads it.
#[unsafe(no_mangle)]
pub(super) static CONFIG: Config = Config::DEFAULT;

/// Bits of `datapath_kern::abi::flow::resizing`: which of the flow tables are being filled from
/// one of another size. Set as [`CONFIG`] is.
#[unsafe(no_mangle)]
pub(super) static RESIZING: u32 = 0;

#[map(name = "flows")]
pub(super) static FLOWS: HashMap<FlowKey, Flow> = HashMap::with_max_entries(131_072, 0);

#[map(name = "pending")]
pub(super) static PENDING: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(32_768, 0);

/// Established flows in a table of the former size, while it is being emptied into [`FLOWS`]; else
/// nothing.
#[map(name = "flows_before")]
pub(super) static FLOWS_BEFORE: HashMap<FlowKey, Flow> = HashMap::with_max_entries(1, 0);

/// The same of [`PENDING`].
#[map(name = "pending_before")]
pub(super) static PENDING_BEFORE: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(1, 0);

#[map(name = "endpoints")]
pub(super) static ENDPOINTS: Array<Endpoint> = Array::with_max_entries(MAX_ENDPOINTS, 0);

#[map(name = "endpoint_slots")]
pub(super) static ENDPOINT_SLOTS: HashMap<u32, u32> = HashMap::with_max_entries(MAX_ENDPOINTS, 0);

#[map(name = "peers")]
pub(super) static PEERS: Array<Peer> = Array::with_max_entries(MAX_PEERS, 0);

#[map(name = "peer_indices")]
pub(super) static PEER_INDICES: HashMap<Addr, u32> = HashMap::with_max_entries(MAX_PEERS, 0);

#[map(name = "next_hops")]
pub(super) static NEXT_HOPS: Array<NextHop> = Array::with_max_entries(MAX_NEXT_HOPS, 0);

#[map(name = "claims")]
pub(super) static CLAIMS: HashMap<u32, Claim> = HashMap::with_max_entries(CLAIMED, 0);

#[map(name = "fragments")]
pub(super) static FRAGMENTS: LruHashMap<FragmentKey, Fragment> =
    LruHashMap::with_max_entries(MAX_FRAGMENTS, 0);

#[map(name = "fragment_ids")]
pub(super) static FRAGMENT_IDS: LruHashMap<FragmentKey, u32> =
    LruHashMap::with_max_entries(MAX_FRAGMENTS, 0);

#[map(name = "budgets")]
pub(super) static BUDGETS: Array<Budget> = Array::with_max_entries(MAX_BUDGETS, 0);

#[map(name = "quotas")]
pub(super) static QUOTAS: Array<Quota> = Array::with_max_entries(MAX_ENDPOINTS, 0);

/// What happened to the entries of the flow tables.
#[map(name = "tally")]
pub(super) static TALLY: PerCpuArray<u64> = PerCpuArray::with_max_entries(MAX_TALLIES, 0);

#[map(name = "port_searches")]
pub(super) static PORT_SEARCHES: LruHashMap<FlowKey, PortSearch> =
    LruHashMap::with_max_entries(MAX_SEARCHES, 0);

#[map(name = "refusals")]
pub(super) static REFUSALS: Array<Refusal> = Array::with_max_entries(MAX_REFUSALS, 0);

#[map(name = "excluded_ports")]
pub(super) static EXCLUDED_PORTS: Array<u64> = Array::with_max_entries(EXCLUDED_WORDS, 0);

#[map(name = "uplinks")]
pub(super) static UPLINKS: HashMap<u32, Uplink> = HashMap::with_max_entries(64, 0);

#[map(name = "ipcache")]
pub(super) static IPCACHE: LpmTrie<Addr, IpEntry> = LpmTrie::with_max_entries(524_288, 0);

/// Classes of peers, by rule set. Room for many, and mostly there are few.
#[map(name = "policy_peers")]
pub(super) static POLICY_PEERS: HashMap<PeerKey, u32> =
    HashMap::with_max_entries(MAX_PEER_CLASSES, BPF_F_NO_PREALLOC);

/// What classes say of ports.
#[map(name = "policy_ports")]
pub(super) static POLICY_PORTS: LpmTrie<PortKey, PortVerdict> =
    LpmTrie::with_max_entries(MAX_PORT_VERDICTS, 0);

/// One packet's state, which the stack has no room for.
#[map(name = "work")]
pub(super) static WORK: PerCpuArray<Work> = PerCpuArray::with_max_entries(1, 0);

/// Arguments of helpers, which want more alignment than the stack gives.
#[map(name = "arguments")]
pub(super) static ARGUMENTS: PerCpuArray<Arguments> = PerCpuArray::with_max_entries(1, 0);

#[map(name = "metrics")]
pub(super) static METRICS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(MAX_METRICS, 0);

/// What is told of single packets.
#[map(name = "events")]
pub(super) static EVENTS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

/// How many events were told and not told.
#[map(name = "event_windows")]
pub(super) static EVENT_WINDOWS: PerCpuArray<Window> = PerCpuArray::with_max_entries(WINDOWS, 0);
