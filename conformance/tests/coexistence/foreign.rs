//! Other people's programs on our interfaces: by tcx before and after ours, and by clsact.

use std::net::IpAddr;

use aya::{
    Ebpf,
    maps::Array,
    programs::{
        LinkOrder, SchedClassifier, TcAttachType,
        tc::{self, NlOptions, TcAttachOptions},
    },
};
use datapath_conformance::{
    family::Family,
    netns::Namespace,
    paths::pod_address,
    topology::plan::{self, UPLINK},
};
use datapath_user::PodDevice;
use object::{
    Architecture, BinaryFormat, Endianness, RelocationFlags, SectionKind, SymbolFlags, SymbolKind,
    SymbolScope, elf,
    write::{Object, Relocation, Symbol, SymbolSection},
};

use crate::{
    node::{Lab, PORT, reach},
    util::OrPanic as _,
};

const SIDES: [TcAttachType; 2] = [TcAttachType::Ingress, TcAttachType::Egress];

/// A program that counts packets and has no opinion, attached to both sides of an interface.
struct Foreign([Ebpf; 2]);

impl Foreign {
    fn attach(namespace: &Namespace, interface: &str, options: fn() -> TcAttachOptions) -> Self {
        let object = counting_object();
        let attached = namespace.run(|| {
            SIDES.map(|side| {
                let mut ebpf = Ebpf::load(&object).unwrap();
                let program: &mut SchedClassifier =
                    ebpf.program_mut(PROGRAM).unwrap().try_into().unwrap();
                program.load().unwrap();
                program
                    .attach_with_options(interface, side, options())
                    .unwrap();
                ebpf
            })
        });
        Self(attached.or_panic())
    }

    /// Packets that it has seen so far, at ingress and at egress.
    fn seen(&self) -> [u64; 2] {
        [0, 1].map(|side: usize| {
            let map = self.0[side].map(MAP).unwrap();
            Array::<_, u64>::try_from(map).unwrap().get(&0, 0).unwrap()
        })
    }
}

/// Behind all that are there.
fn in_turn() -> TcAttachOptions {
    TcAttachOptions::TcxOrder(LinkOrder::last())
}

/// Before all that are there.
fn first() -> TcAttachOptions {
    TcAttachOptions::TcxOrder(LinkOrder::first())
}

/// As a filter of the clsact qdisc, which comes after all tcx.
fn classic() -> TcAttachOptions {
    TcAttachOptions::Netlink(NlOptions::default())
}

/// What somebody has seen of some traffic: at ingress, and at egress.
fn moved(count: impl Fn() -> [u64; 2], traffic: impl FnOnce()) -> [bool; 2] {
    let before = count();
    traffic();
    let after = count();
    [after[0] > before[0], after[1] > before[1]]
}

#[test]
fn programs_before_and_after_ours_on_an_uplink_go_on() {
    let fabric = Lab::fabric("tcx");
    let node = fabric.node(1).or_panic().namespace();
    let before = Foreign::attach(node, UPLINK, in_turn);
    node.run(|| tc::qdisc_add_clsact(UPLINK))
        .or_panic()
        .unwrap();
    let classic = Foreign::attach(node, UPLINK, classic);
    let lab = Lab::on(fabric);
    let node = lab.node(1);
    let after = Foreign::attach(node, UPLINK, in_turn);
    for family in Family::ALL {
        let outside = plan::outside_address(family);
        let to_node = || {
            reach(lab.fabric.outside(), lab.node_address(1, family), PORT);
        };
        let to_outside = || {
            reach(lab.pod(1, 1), outside, PORT);
        };
        let to_remote = || {
            reach(lab.pod(1, 1), pod_address(2, 1, family), PORT);
        };
        // The node's own traffic, of which ours has no opinion: everyone sees both directions.
        assert_eq!(moved(|| before.seen(), to_node), [true, true], "{family}");
        assert_eq!(moved(|| after.seen(), to_node), [true, true], "{family}");
        assert_eq!(moved(|| classic.seen(), to_node), [true, true], "{family}");
        // What ours takes into a pod ends there for those behind it; what it sends, all see.
        for (what, pods) in [
            ("outside", &to_outside as &dyn Fn()),
            ("remote", &to_remote),
        ] {
            let on = |count: &dyn Fn() -> [u64; 2]| moved(count, pods);
            assert_eq!(on(&|| before.seen()), [true, true], "{family}, {what}");
            assert_eq!(on(&|| after.seen()), [false, true], "{family}, {what}");
            assert_eq!(on(&|| classic.seen()), [false, true], "{family}, {what}");
        }
    }

    // One that goes leaves ours and the others.
    drop(before);
    let outside = plan::outside_address(Family::Ipv4);
    reach(lab.pod(1, 1), outside, PORT);
    // Ours goes, and theirs stay.
    let Lab {
        servers,
        datapaths,
        fabric,
    } = lab;
    datapaths.stop().or_panic();
    let node = fabric.node(1).or_panic();
    let to_node = || {
        reach(fabric.outside(), node.address(Family::Ipv4), PORT);
    };
    assert_eq!(moved(|| after.seen(), to_node), [true, true]);
    assert_eq!(moved(|| classic.seen(), to_node), [true, true]);
    drop(servers);
}

#[test]
fn programs_before_and_after_ours_at_a_pod_go_on() {
    // At the host's side of a netkit pair nothing sees what a pod sends.
    let lab = Lab::with(Lab::fabric("tcx-pod"), |config| {
        config.pod_device = PodDevice::Veth;
    });
    let pod: IpAddr = pod_address(1, 1, Family::Ipv4);
    let endpoints = lab.datapaths.inside(0, |datapath| Ok(datapath.endpoints()));
    let endpoints = endpoints.or_panic().into_iter();
    let mut of_pod = endpoints.filter(|endpoint| endpoint.addresses.contains(&pod));
    let interface = of_pod.next().unwrap().host_interface;
    let before = Foreign::attach(lab.node(1), &interface, first);
    let after = Foreign::attach(lab.node(1), &interface, in_turn);
    for family in Family::ALL {
        let others = [
            plan::outside_address(family),
            pod_address(1, 2, family),
            pod_address(2, 1, family),
            lab.node_address(1, family),
        ];
        for other in others {
            let traffic = || {
                reach(lab.pod(1, 1), other, PORT);
            };
            // Whatever a pod sends is ours to decide; what it gets goes straight into it.
            assert_eq!(moved(|| before.seen(), traffic), [true, false], "{other}");
            assert_eq!(moved(|| after.seen(), traffic), [false, false], "{other}");
        }
    }
    drop((before, after));
    reach(lab.pod(1, 1), plan::outside_address(Family::Ipv4), PORT);
}

const PROGRAM: &str = "count";
const MAP: &str = "seen";

/// An object with one program: adds one to the map's only entry and returns `TCX_NEXT`.
fn counting_object() -> Vec<u8> {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let maps = object.add_section(Vec::new(), b"maps".into(), SectionKind::Data);
    // An array (2) with keys of 4 bytes, values of 8, one entry, no flags: libbpf's bpf_map_def.
    let definition: Vec<u8> = [2_u32, 4, 8, 1, 0]
        .iter()
        .flat_map(|n| n.to_le_bytes())
        .collect();
    let offset = object.append_section_data(maps, &definition, 8);
    let symbol = |name: &str, value, size: &[u8], kind, section| Symbol {
        name: name.into(),
        value,
        size: u64::try_from(size.len()).unwrap(),
        kind,
        scope: SymbolScope::Dynamic,
        weak: false,
        section: SymbolSection::Section(section),
        flags: SymbolFlags::None,
    };
    let map = object.add_symbol(symbol(MAP, offset, &definition, SymbolKind::Data, maps));

    // Opcode, registers (source, destination), offset, immediate: RFC 9669, section 3.
    let instruction = |opcode: u8, registers: u8, offset: i16, immediate: i32| {
        let mut bytes = vec![opcode, registers];
        bytes.extend(offset.to_le_bytes());
        bytes.extend(immediate.to_le_bytes());
        bytes
    };
    let code = [
        instruction(0x62, 0x0a, -4, 0), // *(u32 *)(r10 - 4) = 0
        instruction(0xbf, 0xa2, 0, 0),  // r2 = r10
        instruction(0x07, 0x02, 0, -4), // r2 += -4
        instruction(0x18, 0x01, 0, 0),  // r1 = the map
        instruction(0x00, 0x00, 0, 0),
        instruction(0x85, 0x00, 0, 1), // r0 = bpf_map_lookup_elem(r1, r2)
        instruction(0x15, 0x00, 2, 0), // if r0 == 0 skip two
        instruction(0xb7, 0x01, 0, 1), // r1 = 1
        instruction(0xdb, 0x10, 0, 0), // lock *(u64 *)r0 += r1
        instruction(0xb7, 0x00, 0, -1), // r0 = TCX_NEXT
        instruction(0x95, 0x00, 0, 0), // exit
    ]
    .concat();
    let section = object.add_section(Vec::new(), b"classifier".into(), SectionKind::Text);
    let offset = object.append_section_data(section, &code, 8);
    object.add_symbol(symbol(PROGRAM, offset, &code, SymbolKind::Text, section));
    let relocation = Relocation {
        offset: offset + 3 * 8,
        symbol: map,
        addend: 0,
        flags: RelocationFlags::Elf {
            r_type: elf::R_BPF_64_64,
        },
    };
    object.add_relocation(section, relocation).unwrap();
    object.write().unwrap()
}
