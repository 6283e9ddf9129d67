//! Another object than the built-in one.

use std::{env, fs, path::Path};

use datapath_user::OBJECT;
use object::{File, Object as _, ObjectSection as _, SectionKind};

/// Environment variable that names a rebuilt object to replace the built-in one by.
const GIVEN: &str = "CHAOS_OBJECT";
/// Length of an instruction.
const INSTRUCTION_BYTES: usize = 8;
/// `BPF_ALU64 | BPF_MOV | BPF_K`: the whole register gets the immediate, its sign extended.
const MOVE_64: u8 = 0xb7;
/// `BPF_ALU | BPF_MOV | BPF_K`: the lower half gets it, the upper one becomes zero.
const MOVE_32: u8 = 0xb4;

/// Writes an object with other instructions in every program: the file that `CHAOS_OBJECT` names,
/// else the built-in one with each move of a number that is not negative in its other encoding
/// (RFC 9669 section 4.1), which does the same.
pub(crate) fn write_other(path: &Path) {
    if let Some(given) = env::var_os(GIVEN) {
        fs::copy(given, path).unwrap();
        return;
    }
    let object = File::parse(OBJECT).unwrap();
    let mut bytes = OBJECT.to_vec();
    for section in object.sections() {
        if section.kind() != SectionKind::Text {
            continue;
        }
        let (start, length) = section.file_range().unwrap();
        let (start, length) = (
            usize::try_from(start).unwrap(),
            usize::try_from(length).unwrap(),
        );
        for instruction in bytes[start..start + length].chunks_exact_mut(INSTRUCTION_BYTES) {
            let not_negative = instruction[7] < 0x80;
            instruction[0] = match instruction[0] {
                MOVE_64 if not_negative => MOVE_32,
                MOVE_32 if not_negative => MOVE_64,
                other => other,
            };
        }
    }
    fs::write(path, bytes).unwrap();
}
