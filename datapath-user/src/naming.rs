//! Names and Ethernet addresses that follow from what a thing is, so that they are the same after
//! a restart.

use datapath_kern::abi::Mac;

use crate::error::Error;

/// FNV-1a, 64 bits: the same on every machine and in every version.
pub(crate) fn digest(text: impl AsRef<[u8]>) -> u64 {
    text.as_ref()
        .iter()
        .copied()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
}

/// A locally administered unicast address for `kind` of thing `name`.
pub(crate) fn mac(kind: &str, name: &str) -> Mac {
    let [.., a, b, c, d, e] = digest(format!("{kind}/{name}")).to_be_bytes();
    [0x02, a, b, c, d, e]
}

/// Name of the host's side of an endpoint's pair: `dp` and eleven hexadecimal digits.
pub(crate) fn host_interface(id: &str) -> String {
    format!("dp{:011x}", digest(id) & 0x0fff_ffff_ffff)
}

/// Six bytes as people write them.
pub(crate) fn display_mac(mac: Mac) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

/// Checks an identifier from outside before it becomes part of a name or a path.
///
/// # Errors
///
/// [`Error::Invalid`].
pub(crate) fn check_id(what: &'static str, id: &str) -> Result<(), Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let first = id.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    if first && id.len() <= 63 && id.chars().all(plain) {
        return Ok(());
    }
    let rule = "must be 1 to 63 letters, digits, '_', '.' or '-', the first a letter or digit";
    Err(Error::Invalid {
        what,
        value: id.to_owned(),
        rule,
    })
}

/// Checks the name of an interface (`dev_valid_name`, `net/core/dev.c`).
///
/// # Errors
///
/// [`Error::Invalid`].
pub(crate) fn check_interface(name: &str) -> Result<(), Error> {
    let odd = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    let good = !name.is_empty() && name.len() <= 15 && name != "." && name != "..";
    if good && !name.chars().any(odd) {
        return Ok(());
    }
    let rule = "must be 1 to 15 bytes without '/', ':' or space";
    Err(Error::Invalid {
        what: "interface name",
        value: name.to_owned(),
        rule,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_and_fit() {
        assert_eq!(host_interface("n1p1"), host_interface("n1p1"));
        assert_ne!(host_interface("n1p1"), host_interface("n1p2"));
        assert_eq!(host_interface(&"x".repeat(63)).len(), 13);
        assert_eq!(mac("pod", "a")[0] & 3, 2, "local, unicast");
        assert_ne!(mac("pod", "a"), mac("peer", "a"));
        assert_eq!(display_mac([2, 0, 0, 0, 0, 255]), "02:00:00:00:00:ff");
    }

    #[test]
    fn names_from_outside_are_checked() {
        for good in ["n1p1", "a", "0f3c.eth0", "x_-."] {
            assert!(check_id("endpoint id", good).is_ok(), "{good}");
        }
        for bad in ["", "../x", "a/b", ".x", "-x", "a b", &"x".repeat(64), "ä"] {
            assert!(check_id("endpoint id", bad).is_err(), "{bad}");
        }
        for bad in ["", ".", "a/b", "a:b", "a b", "sixteen-letters!"] {
            assert!(check_interface(bad).is_err(), "{bad}");
        }
    }
}
