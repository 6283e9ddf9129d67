//! Our GENEVE codec against scapy and tshark, on packets that both dissected alike.
//!
//! `fixtures/make_geneve.py` writes the packets and says how.

use std::collections::BTreeSet;

use datapath_tunnel::geneve::{Error, Opt, Options, Packet, Repr, Vni};
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    packets: Vec<Case>,
}

/// A packet, and what the two codecs see in it.
#[derive(Deserialize)]
struct Case {
    name: String,
    #[serde(deserialize_with = "hex")]
    packet: Vec<u8>,
    /// The packet as a careful sender writes it: no reserved bits, C bit as the options need it.
    #[serde(deserialize_with = "hex")]
    canonical: Vec<u8>,
    version: u8,
    options_len: usize,
    control: bool,
    critical: bool,
    protocol: u16,
    vni: u32,
    options: Vec<CaseOption>,
    #[serde(deserialize_with = "hex")]
    payload: Vec<u8>,
}

#[derive(Deserialize)]
struct CaseOption {
    class: u16,
    #[serde(rename = "type")]
    kind: u8,
    critical: bool,
    #[serde(deserialize_with = "hex")]
    data: Vec<u8>,
}

#[test]
fn fixture_covers_what_it_is_meant_to() {
    let cases = cases();
    assert!(cases.len() >= 40);
    let covered = |what: fn(&Case) -> usize| cases.iter().map(what).collect::<BTreeSet<_>>();
    assert!(covered(|case| case.options.len()).is_superset(&(0..=5).collect()));
    let lengths = cases.iter().flat_map(|case| &case.options);
    let lengths: BTreeSet<_> = lengths.map(|option| option.data.len()).collect();
    assert!(lengths.is_superset(&[0, 4, 60, 120, 124].into()));
    assert!(covered(|case| case.options_len).contains(&252));
    assert!(covered(|case| case.vni as usize).is_superset(&[0, 1, 0x80_0000, 0xff_ffff].into()));
    assert!(cases.iter().any(|case| case.control));
    assert!(cases.iter().any(|case| case.critical != has_critical(case)));
    assert!(cases.iter().any(|case| case.packet != case.canonical));
}

#[test]
fn every_field_is_read_as_the_other_codecs_read_it() {
    for case in cases() {
        let name = &case.name;
        let packet = Packet::new_checked(&case.packet).expect(name);
        assert_eq!(packet.version(), case.version, "{name}");
        assert_eq!(packet.options_len(), case.options_len, "{name}");
        assert_eq!(packet.is_control(), case.control, "{name}");
        assert_eq!(packet.has_critical_options(), case.critical, "{name}");
        assert_eq!(packet.protocol(), case.protocol, "{name}");
        assert_eq!(packet.vni().get(), case.vni, "{name}");
        assert_eq!(packet.payload(), case.payload, "{name}");

        let options: Vec<_> = packet.options().map(Result::unwrap).collect();
        assert_eq!(options, list(&case), "{name}");
        for (ours, theirs) in options.iter().zip(&case.options) {
            assert_eq!(ours.is_critical(), theirs.critical, "{name}: {ours}");
        }
        assert_eq!(
            packet.unknown_critical(|_, _| false),
            Ok(first_critical(&case)),
            "{name}"
        );
    }
}

#[test]
fn every_packet_is_written_as_the_other_codecs_write_it() {
    for case in cases() {
        let name = &case.name;
        let list = list(&case);
        let repr = Repr {
            vni: Vni::try_from(case.vni).unwrap(),
            protocol: case.protocol,
            control: case.control,
            options: Options::new(&list).expect(name),
        };
        let mut buffer = vec![0xa5; repr.buffer_len() + case.payload.len()];
        let rest = repr.emit(&mut buffer).expect(name);
        rest.copy_from_slice(&case.payload);
        assert_eq!(buffer, case.canonical, "{name}");
    }
}

#[test]
fn parsed_header_is_the_one_described_and_writes_the_same_packet() {
    for case in cases() {
        let name = &case.name;
        let packet = Packet::new_unchecked(&case.packet);
        let parsed = Repr::parse(&packet);
        if let (false, Some((class, kind))) = (case.critical, first_critical(&case)) {
            let error = Error::CriticalNotFlagged { class, kind };
            assert_eq!(parsed, Err(error), "{name}");
            continue;
        }
        let parsed = parsed.expect(name);
        let list = list(&case);
        let described = Repr {
            vni: Vni::try_from(case.vni).unwrap(),
            protocol: case.protocol,
            control: case.control,
            options: Options::new(&list).unwrap(),
        };
        assert_eq!(parsed, described, "{name}");
        let mut buffer = vec![0xa5; case.canonical.len()];
        let rest = parsed.emit(&mut buffer).expect(name);
        rest.copy_from_slice(packet.payload());
        assert_eq!(buffer, case.canonical, "{name}");
    }
}

#[test]
fn no_packet_survives_losing_a_byte_of_its_header() {
    for case in cases() {
        let header_len = case.packet.len() - case.payload.len();
        for got in 0..header_len {
            let needed = if got < 8 { 8 } else { header_len };
            let cut = Packet::new_unchecked(&case.packet[..got]);
            let error = Error::Truncated { needed, got };
            assert_eq!(cut.check_len(), Err(error), "{} cut to {got}", case.name);
            assert_eq!(Repr::parse(&cut), Err(error), "{} cut to {got}", case.name);
        }
    }
}

fn cases() -> Vec<Case> {
    let fixture: Fixture = serde_json::from_str(include_str!("fixtures/geneve.json"))
        .expect("geneve.json is as make_geneve.py writes it");
    fixture.packets
}

fn list(case: &Case) -> Vec<Opt<'_>> {
    let options = case.options.iter();
    options
        .map(|option| Opt::new(option.class, option.kind, &option.data).expect(&case.name))
        .collect()
}

fn first_critical(case: &Case) -> Option<(u16, u8)> {
    let critical = case.options.iter().find(|option| option.critical)?;
    Some((critical.class, critical.kind))
}

fn has_critical(case: &Case) -> bool {
    first_critical(case).is_some()
}

fn hex<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let digits = String::deserialize(deserializer)?;
    assert!(digits.len().is_multiple_of(2), "{digits}");
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).map_err(serde::de::Error::custom))
        .collect()
}
