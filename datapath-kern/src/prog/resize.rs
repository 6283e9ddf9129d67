//! A flow table in the middle of a change of its size: two maps behind one [`Table`].
//!
//! While user space moves the flows from the map of the former size to the new one, a flow is looked
//! for in the new one and then in the former; new ones enter the new one, and none whose key the
//! former one has. Which tables that goes for is fixed at load: where there is no former one, the
//! verifier removes all that is said of it here.

use core::marker::PhantomData;
use core::ptr::NonNull;

use aya_ebpf::maps::{HashMap, LruHashMap};
use datapath_kern::abi::flow::{Flow, FlowKey, resizing};
use datapath_kern::env::{InsertError, Table, Visit};

use super::env::Map;
use super::maps;

/// A flow table, and the map of another size that it may be filled from.
pub(super) trait Maps {
    /// The kind of both.
    type Map: Lookup + 'static;
    /// One of [`resizing`].
    const BIT: u32;

    /// The map that stays.
    fn map() -> &'static Self::Map;

    /// The map that is emptied.
    fn former() -> &'static Self::Map;
}

/// Established flows.
pub(super) struct Established;

impl Maps for Established {
    type Map = HashMap<FlowKey, Flow>;
    const BIT: u32 = resizing::FLOWS;

    #[inline(always)]
    fn map() -> &'static Self::Map {
        &maps::FLOWS
    }

    #[inline(always)]
    fn former() -> &'static Self::Map {
        &maps::FLOWS_BEFORE
    }
}

/// Flows not proven yet.
pub(super) struct Pending;

impl Maps for Pending {
    type Map = LruHashMap<FlowKey, Flow>;
    const BIT: u32 = resizing::PENDING;

    #[inline(always)]
    fn map() -> &'static Self::Map {
        &maps::PENDING
    }

    #[inline(always)]
    fn former() -> &'static Self::Map {
        &maps::PENDING_BEFORE
    }
}

/// A map that a value can be pointed at in.
pub(super) trait Lookup {
    /// The place of the value under `key`.
    fn at(&self, key: &FlowKey) -> Option<NonNull<Flow>>;
}

impl Lookup for HashMap<FlowKey, Flow> {
    #[inline(always)]
    fn at(&self, key: &FlowKey) -> Option<NonNull<Flow>> {
        self.get_ptr_mut(key).and_then(NonNull::new)
    }
}

impl Lookup for LruHashMap<FlowKey, Flow> {
    #[inline(always)]
    fn at(&self, key: &FlowKey) -> Option<NonNull<Flow>> {
        self.get_ptr_mut(key).and_then(NonNull::new)
    }
}

/// [`Maps`] as one table.
pub(super) struct Resizable<M>(PhantomData<M>);

impl<M: Maps> Resizable<M> {
    #[inline(always)]
    pub(super) const fn new() -> Self {
        Self(PhantomData)
    }
}

/// Whether there is a former map.
#[inline(always)]
fn is_filled<M: Maps>() -> bool {
    // SAFETY: the static is initialised and never written after load. Volatile: the compiler would
    // take the value of compile time for granted.
    unsafe { core::ptr::read_volatile(&raw const maps::RESIZING) & M::BIT != 0 }
}

/// The place of the value under `key`, in whichever map it is. One place, so that what is done with
/// the value is compiled once.
#[inline(always)]
fn place<M: Maps>(key: &FlowKey) -> Option<NonNull<Flow>> {
    if is_filled::<M>() {
        in_either::<M>(key)
    } else {
        M::map().at(key)
    }
}

// Functions of their own, asked for before anything is looked up: what the rare case keeps alive
// would have the verifier take states of the common one apart.

#[inline(never)]
fn in_either<M: Maps>(key: &FlowKey) -> Option<NonNull<Flow>> {
    match M::map().at(key) {
        None => M::former().at(key),
        found => found,
    }
}

#[inline(never)]
fn is_in_former<M: Maps>(key: &FlowKey) -> bool {
    M::former().at(key).is_some()
}

#[inline(never)]
fn remove_from_both<M: Maps>(key: &FlowKey) -> bool
where
    Map<M::Map>: Table<FlowKey, Flow>,
{
    // A flow that is just being moved is in both.
    let of_former = Map(M::former()).remove(key);
    Map(M::map()).remove(key) || of_former
}

impl<M: Maps> Table<FlowKey, Flow> for Resizable<M>
where
    Map<M::Map>: Table<FlowKey, Flow>,
{
    #[inline(always)]
    fn get(&self, key: &FlowKey) -> Option<Flow> {
        // SAFETY: as for the table of one map, see `Map`.
        place::<M>(key).map(|value| unsafe { *value.as_ptr() })
    }

    #[inline(always)]
    fn update<R>(&self, key: &FlowKey, change: impl FnOnce(&mut Flow) -> R) -> Option<R> {
        // SAFETY: as for the table of one map, see `Map`.
        place::<M>(key).map(|value| change(unsafe { &mut *value.as_ptr() }))
    }

    #[inline(always)]
    fn visit<T: Visit<Flow>>(&self, key: &FlowKey, visit: T) -> Option<T::Outcome> {
        let value = place::<M>(key)?;
        // SAFETY: as for the table of one map, see `Map`.
        Some(visit.visit(unsafe { &mut *value.as_ptr() }))
    }

    #[inline(always)]
    fn insert(&self, key: &FlowKey, value: &Flow) -> Result<(), InsertError> {
        if is_filled::<M>() && is_in_former::<M>(key) {
            return Err(InsertError::Exists);
        }
        Map(M::map()).insert(key, value)
    }

    #[inline(always)]
    fn remove(&self, key: &FlowKey) -> bool {
        if is_filled::<M>() {
            remove_from_both::<M>(key)
        } else {
            Map(M::map()).remove(key)
        }
    }
}
