//! BPF instructions, and the ELF file that aya loads them from.
//!
//! Encoding: RFC 9669. The immediates of stores are in the byte order of a little-endian machine,
//! as the datapath's own object is.

use object::{
    Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
    write::{Error, Object, Relocation, StandardSegment, Symbol, SymbolSection},
};

/// A register, 0 to 10.
pub(super) type Register = u8;

/// One slot of eight bytes (RFC 9669 section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    opcode: u8,
    destination: Register,
    source: Register,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    const fn new(
        opcode: u8,
        destination: Register,
        source: Register,
        offset: i16,
        immediate: i32,
    ) -> Self {
        Self {
            opcode,
            destination,
            source,
            offset,
            immediate,
        }
    }

    fn bytes(self) -> [u8; 8] {
        let [o0, o1] = self.offset.to_le_bytes();
        let [i0, i1, i2, i3] = self.immediate.to_le_bytes();
        let registers = self.source << 4 | self.destination;
        [self.opcode, registers, o0, o1, i0, i1, i2, i3]
    }
}

/// `to = from`.
pub(super) const fn copy(to: Register, from: Register) -> Instruction {
    Instruction::new(0xbf, to, from, 0, 0)
}

/// `to = value`, sign extended.
pub(super) const fn set(to: Register, value: i32) -> Instruction {
    Instruction::new(0xb7, to, 0, 0, value)
}

/// `to += value`.
pub(super) const fn add(to: Register, value: i32) -> Instruction {
    Instruction::new(0x07, to, 0, 0, value)
}

/// `to %= value`, of the lower 32 bits without sign.
pub(super) const fn remainder(to: Register, value: i32) -> Instruction {
    Instruction::new(0x94, to, 0, 0, value)
}

/// `to /= value`, of the lower 32 bits without sign.
pub(super) const fn divide(to: Register, value: i32) -> Instruction {
    Instruction::new(0x34, to, 0, 0, value)
}

/// `to ^= value`.
pub(super) const fn xor(to: Register, value: i32) -> Instruction {
    Instruction::new(0xa7, to, 0, 0, value)
}

/// The lower 16 bits into network order; the others become zero.
pub(super) const fn network_16(register: Register) -> Instruction {
    Instruction::new(0xdc, register, 0, 0, 16)
}

/// `to = *(u32 *)(from + offset)`.
pub(super) const fn load_32(to: Register, from: Register, offset: i16) -> Instruction {
    Instruction::new(0x61, to, from, offset, 0)
}

/// `to = *(u16 *)(from + offset)`.
pub(super) const fn load_16(to: Register, from: Register, offset: i16) -> Instruction {
    Instruction::new(0x69, to, from, offset, 0)
}

/// `to = *(u64 *)(from + offset)`.
pub(super) const fn load_64(to: Register, from: Register, offset: i16) -> Instruction {
    Instruction::new(0x79, to, from, offset, 0)
}

/// `*(u16 *)(to + offset) = from`.
pub(super) const fn store_16(to: Register, offset: i16, from: Register) -> Instruction {
    Instruction::new(0x6b, to, from, offset, 0)
}

/// `*(u32 *)(to + offset) = from`.
pub(super) const fn store_32(to: Register, offset: i16, from: Register) -> Instruction {
    Instruction::new(0x63, to, from, offset, 0)
}

/// `*(u64 *)(to + offset) = from`.
pub(super) const fn store_64(to: Register, offset: i16, from: Register) -> Instruction {
    Instruction::new(0x7b, to, from, offset, 0)
}

/// `*(u8 *)(to + offset) = value`.
pub(super) const fn store_byte(to: Register, offset: i16, value: u8) -> Instruction {
    Instruction::new(0x72, to, 0, offset, value as i32)
}

/// Four bytes as they are, to `to + offset`.
pub(super) const fn store_bytes(to: Register, offset: i16, value: [u8; 4]) -> Instruction {
    Instruction::new(0x62, to, 0, offset, i32::from_le_bytes(value))
}

/// Skips `over` instructions where `left > right`, without sign.
pub(super) const fn skip_if_above(left: Register, right: Register, over: i16) -> Instruction {
    Instruction::new(0x2d, left, right, over, 0)
}

/// Skips `over` instructions where `register == value`.
pub(super) const fn skip_if_equal(register: Register, value: i32, over: i16) -> Instruction {
    Instruction::new(0x15, register, 0, over, value)
}

/// Skips `over` instructions where `register != value`.
pub(super) const fn skip_unless_equal(register: Register, value: i32, over: i16) -> Instruction {
    Instruction::new(0x55, register, 0, over, value)
}

/// Calls a helper by its number (include/uapi/linux/bpf.h).
pub(super) const fn call(helper: i32) -> Instruction {
    Instruction::new(0x85, 0, 0, 0, helper)
}

/// Returns register 0.
pub(super) const fn exit() -> Instruction {
    Instruction::new(0x95, 0, 0, 0, 0)
}

/// `to = ` the address of the file's map: two slots, filled in when it is loaded.
pub(super) const fn map_address(to: Register) -> [Instruction; 2] {
    let first = Instruction::new(MAP_ADDRESS, to, 0, 0, 0);
    [first, Instruction::new(0, 0, 0, 0, 0)]
}

/// `r0 = ` the address of the first value of the file's map, or zero: six slots; the key
/// is put at `key_at` on the stack. Registers 1 to 5 are lost.
pub(super) fn cell(key_at: i16) -> [Instruction; 6] {
    let [low, high] = map_address(1);
    [
        store_bytes(10, key_at, [0; 4]),
        copy(2, 10),
        add(2, key_at.into()),
        low,
        high,
        call(MAP_LOOKUP_ELEM),
    ]
}

/// Helper `bpf_map_lookup_elem`.
const MAP_LOOKUP_ELEM: i32 = 1;

const MAP_ADDRESS: u8 = 0x18;

/// `R_BPF_64_64`: the address of a map (`Documentation/bpf/llvm_reloc.rst`).
const MAP_RELOCATION: u32 = 1;

/// A map as the section `maps` holds it: `struct bpf_map_def` of libbpf.
#[derive(Clone, Copy, Debug)]
pub(super) struct MapDefinition {
    pub(super) name: &'static str,
    pub(super) kind: u32,
    pub(super) key_bytes: u32,
    pub(super) value_bytes: u32,
    pub(super) entries: u32,
}

/// Writes a file with one program, and the one map that it asks the address of, if any.
///
/// `section` says what kind of program it is: `xdp`, `classifier`.
///
/// # Errors
///
/// [`Error`], what the writer says.
pub(super) fn file(
    section: &str,
    program: &str,
    instructions: &[Instruction],
    map: Option<MapDefinition>,
) -> Result<Vec<u8>, Error> {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let segment = object.segment_name(StandardSegment::Data).to_vec();
    let mut add = |name: &str, kind, symbol: Option<(&str, SymbolKind)>, data: &[u8]| {
        let id = object.add_section(segment.clone(), name.as_bytes().to_vec(), kind);
        object.append_section_data(id, data, 8);
        let symbol = symbol.map(|(name, kind)| {
            object.add_symbol(Symbol {
                name: name.as_bytes().to_vec(),
                value: 0,
                size: data.len() as u64,
                kind,
                scope: SymbolScope::Dynamic,
                weak: false,
                section: SymbolSection::Section(id),
                flags: SymbolFlags::None,
            })
        });
        (id, symbol)
    };
    // The helpers used here are for every licence; this is the crate's.
    add("license", SectionKind::Data, None, b"Dual MIT/GPL\0");
    let map = map.and_then(|map| {
        let words = [map.kind, map.key_bytes, map.value_bytes, map.entries, 0];
        let data: Vec<_> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        add(
            "maps",
            SectionKind::Data,
            Some((map.name, SymbolKind::Data)),
            &data,
        )
        .1
    });
    let code: Vec<_> = instructions.iter().flat_map(|i| i.bytes()).collect();
    let (text, _) = add(
        section,
        SectionKind::Text,
        Some((program, SymbolKind::Text)),
        &code,
    );
    if let Some(symbol) = map {
        let slots = (0..).step_by(8).zip(instructions);
        for (offset, _) in slots.filter(|(_, slot)| slot.opcode == MAP_ADDRESS) {
            let relocation = Relocation {
                offset,
                symbol,
                addend: 0,
                flags: object::RelocationFlags::Elf {
                    r_type: MAP_RELOCATION,
                },
            };
            object.add_relocation(text, relocation)?;
        }
    }
    object.write()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_encoded_as_rfc_9669_says() {
        assert_eq!(exit().bytes(), [0x95, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(copy(6, 1).bytes(), [0xbf, 0x16, 0, 0, 0, 0, 0, 0]);
        assert_eq!(
            add(2, -4).bytes(),
            [0x07, 0x02, 0, 0, 0xfc, 0xff, 0xff, 0xff]
        );
        assert_eq!(
            store_bytes(2, 14, [1, 2, 3, 4]).bytes(),
            [0x62, 2, 14, 0, 1, 2, 3, 4]
        );
        assert_eq!(
            skip_if_above(4, 3, 258).bytes(),
            [0x2d, 0x34, 2, 1, 0, 0, 0, 0]
        );
    }
}
