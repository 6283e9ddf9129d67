//! What holds for every GENEVE packet, and for bytes that are none.

use datapath_tunnel::geneve::{
    ETHERTYPE_TEB, Error, HEADER_LEN, Header, MAX_OPTIONS_LEN, Opt, Options, Packet, Repr, Vni,
};
use proptest::{collection::vec, prelude::*, sample::Index};
use zerocopy::{FromBytes, IntoBytes};

/// A packet as plain values, of which a [`Repr`] borrows.
#[derive(Clone, Debug)]
struct Parts {
    vni: Vni,
    protocol: u16,
    control: bool,
    options: Vec<(u16, u8, Vec<u8>)>,
    payload: Vec<u8>,
}

proptest! {
    #[test]
    fn header_reads_back(
        vni in vni(),
        protocol in any::<u16>(),
        words in 0..=63usize,
        control in any::<bool>(),
        critical in any::<bool>(),
    ) {
        let header = Header::new(vni, protocol)
            .with_options_len(words * 4)?
            .with_control(control)
            .with_critical_options(critical);
        prop_assert_eq!(header.vni(), vni);
        prop_assert_eq!(header.protocol(), protocol);
        prop_assert_eq!(header.options_len(), words * 4);
        prop_assert_eq!(header.len(), words * 4 + HEADER_LEN);
        prop_assert_eq!(header.is_control(), control);
        prop_assert_eq!(header.has_critical_options(), critical);
        prop_assert_eq!(header.check_version(), Ok(()));
        prop_assert_eq!(Header::read_from_bytes(header.as_bytes()), Ok(header));
    }

    #[test]
    fn packet_reads_back(parts in parts()) {
        let (bytes, header_len) = parts.bytes();
        let packet = Packet::new_checked(&bytes)?;
        prop_assert_eq!(packet.header_len(), header_len);
        prop_assert_eq!(packet.payload(), &parts.payload);
        let list = parts.list();
        let repr = Repr::parse(&packet)?;
        prop_assert_eq!(repr, parts.repr(&list));
        let mut again = bytes.clone();
        again[..header_len].fill(0xa5);
        repr.emit(&mut again)?;
        prop_assert_eq!(again, bytes);
    }

    #[test]
    fn truncated_header_is_refused(parts in parts(), at in any::<Index>()) {
        let (bytes, header_len) = parts.bytes();
        let got = at.index(header_len);
        let needed = if got < HEADER_LEN { HEADER_LEN } else { header_len };
        let error = Error::Truncated { needed, got };
        prop_assert_eq!(Packet::new_checked(&bytes[..got]), Err(error));
    }

    #[test]
    fn flipped_length_bit_is_refused_or_stays_in_bounds(parts in parts(), at in any::<Index>()) {
        let (mut bytes, _) = parts.bytes();
        let before = bytes.clone();
        let bits = length_bits(&parts);
        let (byte, bit) = bits[at.index(bits.len())];
        bytes[byte] ^= bit;
        if let Some(accepted) = check(&bytes)? {
            let original = Packet::new_unchecked(&before);
            prop_assert!(accepted.options().ne(original.options()));
        }
    }

    #[test]
    fn short_buffer_is_not_written(parts in parts(), at in any::<Index>()) {
        let list = parts.list();
        let repr = parts.repr(&list);
        let needed = repr.buffer_len();
        let mut buffer = vec![0xa5; at.index(needed)];
        let error = Error::Truncated { needed, got: buffer.len() };
        prop_assert_eq!(repr.emit(&mut buffer), Err(error));
        prop_assert!(buffer.iter().all(|byte| *byte == 0xa5));
    }

    #[test]
    fn fields_are_written_without_disturbing_others(
        parts in parts(),
        vni in vni(),
        protocol in any::<u16>(),
        control in any::<bool>(),
    ) {
        let (mut bytes, header_len) = parts.bytes();
        let mut packet = Packet::new_checked(&mut bytes[..])?;
        packet.set_vni(vni)?;
        packet.set_protocol(protocol)?;
        packet.set_control(control)?;
        let changed = Parts { vni, protocol, control, ..parts };
        prop_assert_eq!(&bytes, &changed.bytes().0);
        let mut packet = Packet::new_unchecked(&mut bytes[..]);
        prop_assert_eq!(packet.options_mut().len(), header_len - HEADER_LEN);
        prop_assert_eq!(packet.payload_mut(), &changed.payload);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100_000))]

    #[test]
    fn any_bytes_are_refused_or_stay_in_bounds(bytes in anything()) {
        check(&bytes)?;
    }
}

/// Asks for everything there is to know about `bytes`. Accepted ones must add up.
fn check(bytes: &[u8]) -> Result<Option<Packet<&[u8]>>, TestCaseError> {
    let unchecked = Packet::new_unchecked(bytes);
    let text = unchecked.to_string();
    prop_assert!(text.starts_with("GENEVE "), "{}", text);
    prop_assert!(unchecked.options_bytes().len() <= MAX_OPTIONS_LEN);
    prop_assert!(unchecked.payload().len() <= bytes.len());
    // An option takes four bytes at least, and nothing follows an error.
    prop_assert!(unchecked.options().count() <= MAX_OPTIONS_LEN / 4);
    let errors = unchecked.options().filter(Result::is_err).count();
    prop_assert_eq!(errors, usize::from(unchecked.check_options().is_err()));

    let repr = Repr::parse(&unchecked);
    let packet = match Packet::new_checked(bytes) {
        Ok(packet) => packet,
        Err(error) => {
            prop_assert_eq!(repr, Err(error));
            return Ok(None);
        }
    };
    prop_assert_eq!(repr.err(), packet.check_critical_flag().err());
    prop_assert_eq!(packet.version(), 0);
    let read: usize = packet.options().flatten().map(|o| o.buffer_len()).sum();
    prop_assert_eq!(read, packet.options_len());
    prop_assert_eq!(HEADER_LEN + read + packet.payload().len(), bytes.len());
    if let Ok(repr) = repr {
        // Written again it says the same, whatever the reserved bits were.
        let mut again = vec![0xa5; repr.buffer_len()];
        repr.emit(&mut again)?;
        let again = Packet::new_unchecked(again);
        prop_assert_eq!(Repr::parse(&again)?, repr);
    }
    Ok(Some(packet))
}

/// Where the length fields of a packet are: offset of the byte, bit.
fn length_bits(parts: &Parts) -> Vec<(usize, u8)> {
    let mut bits: Vec<_> = (0..6).map(|bit| (0, 1 << bit)).collect();
    let mut at = HEADER_LEN;
    for (_, _, data) in &parts.options {
        bits.extend((0..5).map(|bit| (at + 3, 1 << bit)));
        at += 4 + data.len();
    }
    bits
}

impl Parts {
    fn list(&self) -> Vec<Opt<'_>> {
        let options = self.options.iter();
        options
            .map(|(class, kind, data)| Opt::new(*class, *kind, data).expect("data is whole words"))
            .collect()
    }

    fn repr<'a>(&self, list: &'a [Opt<'a>]) -> Repr<'a> {
        Repr {
            vni: self.vni,
            protocol: self.protocol,
            control: self.control,
            options: Options::new(list).expect("options fit in a packet"),
        }
    }

    /// The packet, and the offset of its payload.
    fn bytes(&self) -> (Vec<u8>, usize) {
        let list = self.list();
        let repr = self.repr(&list);
        let mut bytes = vec![0xa5; repr.buffer_len() + self.payload.len()];
        let rest = repr.emit(&mut bytes).expect("the buffer has room");
        rest.copy_from_slice(&self.payload);
        (bytes, repr.buffer_len())
    }
}

prop_compose! {
    fn parts()(
        vni in vni(),
        protocol in prop_oneof![Just(ETHERTYPE_TEB), any::<u16>()],
        control in any::<bool>(),
        options in vec(option(), 0..8),
        payload in vec(any::<u8>(), 0..300),
    ) -> Parts {
        // As many of the options as one packet holds.
        let mut room = MAX_OPTIONS_LEN;
        let fits = |(_, _, data): &(u16, u8, Vec<u8>)| {
            room.checked_sub(4 + data.len()).inspect(|left| room = *left).is_some()
        };
        let options = options.into_iter().filter(fits).collect();
        Parts { vni, protocol, control, options, payload }
    }
}

fn option() -> impl Strategy<Value = (u16, u8, Vec<u8>)> {
    let words = prop_oneof![3 => 0..4usize, 1 => 0..=31usize];
    let data = words.prop_flat_map(|words| vec(any::<u8>(), words * 4));
    (any::<u16>(), any::<u8>(), data)
}

fn vni() -> impl Strategy<Value = Vni> {
    let edge = prop_oneof![Just(0), Just(1), Just(0xff_ffff)];
    prop_oneof![1 => edge, 4 => 0..=0xff_ffffu32].prop_map(|vni| Vni::new(vni).expect("24 bits"))
}

/// Bytes of any kind; most claim version 0 and few options, else hardly one would get further
/// than the first check.
fn anything() -> impl Strategy<Value = Vec<u8>> {
    let raw = || vec(any::<u8>(), 0..320);
    let masked = |mask: u8| {
        raw().prop_map(move |mut bytes| {
            if let Some(first) = bytes.first_mut() {
                *first &= mask;
            }
            bytes
        })
    };
    prop_oneof![raw(), masked(0x3f), masked(0x03)]
}
