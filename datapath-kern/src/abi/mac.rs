//! Ethernet addresses.

/// An Ethernet address, in wire order.
pub type Mac = [u8; 6];

/// An Ethernet address as words: out of bytes the compiler would put them together each time that two
/// are compared.
#[derive(Clone, Copy, Debug, Default, Eq)]
pub struct MacWords([u16; 3]);

impl MacWords {
    /// In memory order.
    #[inline(always)]
    #[must_use]
    pub const fn new(words: [u16; 3]) -> Self {
        Self(words)
    }
}

impl PartialEq for MacWords {
    // Word by word: of whole arrays the compiler would have a library compare the bytes.
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let (Self([a, b, c]), Self([d, e, f])) = (self, other);
        (a ^ d) | (b ^ e) | (c ^ f) == 0
    }
}

impl From<Mac> for MacWords {
    #[inline(always)]
    fn from(mac: Mac) -> Self {
        Self(zerocopy::transmute!(mac))
    }
}

impl From<MacWords> for Mac {
    #[inline(always)]
    fn from(words: MacWords) -> Self {
        zerocopy::transmute!(words.0)
    }
}
