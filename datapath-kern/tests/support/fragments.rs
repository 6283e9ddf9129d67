//! Frames cut into fragments and put together again (RFC 791, section 3.2; RFC 8200, section 4.5).

use etherparse::Ipv4HeaderSlice;

/// Ethernet and IPv6 header.
const BEFORE_V6: usize = 54;
/// Ethernet and IPv4 header without options.
const BEFORE_V4: usize = 34;

/// Cuts a frame, which has no IP options or extension headers, into fragments of `piece` bytes of
/// payload, a multiple of eight; identification `id`.
pub(crate) fn cut(frame: &[u8], piece: usize, id: u16) -> Vec<Vec<u8>> {
    let v4 = frame[12..14] == [8, 0];
    let (headers, payload) = frame.split_at(if v4 { BEFORE_V4 } else { BEFORE_V6 });
    let last = payload.chunks(piece).count() - 1;
    let pieces = payload.chunks(piece).enumerate();
    pieces
        .map(|(index, bytes)| {
            let offset = u16::try_from(index * piece / 8).unwrap();
            let more = index < last;
            let mut frame = headers.to_vec();
            if v4 {
                let length = u16::try_from(20 + bytes.len()).unwrap();
                frame[16..18].copy_from_slice(&length.to_be_bytes());
                frame[18..20].copy_from_slice(&id.to_be_bytes());
                let field = offset | if more { 0x2000 } else { 0 };
                frame[20..22].copy_from_slice(&field.to_be_bytes());
                seal(&mut frame);
            } else {
                let length = u16::try_from(8 + bytes.len()).unwrap();
                frame[18..20].copy_from_slice(&length.to_be_bytes());
                let next = std::mem::replace(&mut frame[20], 44);
                frame.extend([next, 0]);
                frame.extend((offset << 3 | u16::from(more)).to_be_bytes());
                frame.extend([0, 0]);
                frame.extend(id.to_be_bytes());
            }
            frame.extend(bytes);
            frame
        })
        .collect()
}

/// Puts the fragments of a packet together, in whatever order they are.
///
/// # Panics
///
/// Where one is missing, or its header is wrong.
pub(crate) fn join(fragments: &[Vec<u8>]) -> Vec<u8> {
    let mut parts: Vec<_> = fragments.iter().map(|frame| part(frame)).collect();
    parts.sort_by_key(|(offset, ..)| *offset);
    let mut frame = Vec::new();
    let mut payload: Vec<u8> = Vec::new();
    let count = parts.len();
    for (index, (offset, more, headers, bytes)) in parts.into_iter().enumerate() {
        assert_eq!(offset, payload.len(), "a piece is missing");
        assert_eq!(more, index + 1 < count);
        if index == 0 {
            frame = headers;
        }
        payload.extend(bytes);
    }
    let length = u16::try_from(payload.len()).unwrap();
    if frame[12..14] == [8, 0] {
        frame[16..18].copy_from_slice(&(length + 20).to_be_bytes());
        frame[20..22].copy_from_slice(&[0, 0]);
        seal(&mut frame);
    } else {
        frame[18..20].copy_from_slice(&length.to_be_bytes());
    }
    frame.extend(payload);
    frame
}

/// Offset, whether more follow, the headers of the whole packet, and the piece of it.
fn part(frame: &[u8]) -> (usize, bool, Vec<u8>, &[u8]) {
    if frame[12..14] == [8, 0] {
        let ip = Ipv4HeaderSlice::from_slice(&frame[14..])
            .unwrap()
            .to_header();
        assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        assert_eq!(usize::from(ip.total_len), frame.len() - 14);
        let offset = usize::from(ip.fragment_offset.value()) * 8;
        let (headers, bytes) = frame.split_at(BEFORE_V4);
        return (offset, ip.more_fragments, headers.to_vec(), bytes);
    }
    assert_eq!(frame[20], 44, "no fragment header");
    let length = u16::from_be_bytes([frame[18], frame[19]]);
    assert_eq!(usize::from(length), frame.len() - BEFORE_V6);
    let field = u16::from_be_bytes([frame[56], frame[57]]);
    let mut headers = frame[..BEFORE_V6].to_vec();
    headers[20] = frame[BEFORE_V6];
    let offset = usize::from(field & !7);
    (offset, field & 1 != 0, headers, &frame[BEFORE_V6 + 8..])
}

/// Writes the checksum of an IPv4 header.
pub(crate) fn seal(frame: &mut [u8]) {
    let ip = Ipv4HeaderSlice::from_slice(&frame[14..])
        .unwrap()
        .to_header();
    frame[24..26].copy_from_slice(&ip.calc_header_checksum().to_be_bytes());
}
