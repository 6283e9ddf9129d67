//! [`abi!`](crate::abi): what makes a struct fit to cross between kernel and user space.

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
            const fn assert_plain<
                T: zerocopy::FromBytes + zerocopy::IntoBytes + zerocopy::Immutable + Copy + 'static,
            >() {
            }
            assert_plain::<$name>();
        };
        // SAFETY: `assert_plain` above proves at compile time that the type is `Copy`, has no
        // padding and no invalid bit pattern, and holds no reference.
        #[cfg(feature = "user")]
        #[allow(
            unsafe_code,
            reason = "the one trait that aya needs; proved by the line above"
        )]
        unsafe impl aya::Pod for $name {}
    };
}
