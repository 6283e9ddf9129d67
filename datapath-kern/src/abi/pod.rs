//! [`abi!`](crate::abi!): what makes a struct fit to cross between kernel and user space.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Compiles only for types that any bytes are a value of, and that are nothing but bytes.
#[doc(hidden)]
pub const fn assert_plain<T: FromBytes + IntoBytes + Immutable + Copy + 'static>() {}

/// Asserts the size and alignment of an ABI type and, with feature `user`, lets aya read and
/// write maps of it.
///
/// The type must derive zerocopy's `IntoBytes`, which refuses implicit padding at compile time:
/// a struct without padding, valid for any bit pattern (`FromBytes`), is what `aya::Pod` asks for.
#[macro_export]
macro_rules! abi {
    ($name:ty, size = $size:expr, align = $align:expr) => {
        const _: () = {
            assert!(size_of::<$name>() == $size);
            assert!(align_of::<$name>() == $align);
            $crate::abi::pod::assert_plain::<$name>();
        };
        #[cfg(feature = "user")]
        #[allow(
            unsafe_code,
            reason = "the one trait that aya needs; proved by the line above"
        )]
        // SAFETY: `assert_plain` above proves at compile time that the type is `Copy`, has no
        // padding and no invalid bit pattern, and holds no reference.
        unsafe impl aya::Pod for $name {}
    };
}
