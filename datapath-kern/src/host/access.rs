//! What the packet path asked its environment for.

use core::cell::{Cell, RefCell};
use core::fmt;
use std::vec::Vec;

use crate::env::{InsertError, Table};

/// One access to the environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To a table, by the name that its map has in the kernel.
    Table(&'static str, Op),
    /// Longest prefix of the ipcache.
    Ipcache,
    /// Longest prefix of what classes say of ports.
    PolicyPort,
    /// Routing table.
    Fib,
    /// Sockets of the node.
    Socket,
    /// Clock.
    Now,
    /// Random number.
    Random,
    /// Counter.
    Count,
    /// Event.
    Emit,
}

/// What was done with a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A value was copied out.
    Get,
    /// A value was changed in place, or only looked at there.
    Update,
    /// A key was entered.
    Insert,
    /// A key was taken out.
    Remove,
}

impl Access {
    /// Whether this is an access to the table of that name.
    #[must_use]
    pub fn is_to(self, name: &str) -> bool {
        matches!(self, Self::Table(table, _) if table == name)
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(name, Op::Get) => write!(f, "{name} get"),
            Self::Table(name, Op::Update) => write!(f, "{name} update"),
            Self::Table(name, Op::Insert) => write!(f, "{name} insert"),
            Self::Table(name, Op::Remove) => write!(f, "{name} remove"),
            Self::Ipcache => f.write_str("ipcache"),
            Self::PolicyPort => f.write_str("policy_port"),
            Self::Fib => f.write_str("fib"),
            Self::Socket => f.write_str("socket"),
            Self::Now => f.write_str("now"),
            Self::Random => f.write_str("random"),
            Self::Count => f.write_str("count"),
            Self::Emit => f.write_str("emit"),
        }
    }
}

/// Accesses in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Log {
    accesses: RefCell<Vec<Access>>,
    /// Entries that are being changed in place.
    inside: Cell<usize>,
}

impl Log {
    pub(super) fn write(&self, access: Access) {
        self.accesses.borrow_mut().push(access);
    }

    pub(super) fn take(&self) -> Vec<Access> {
        self.accesses.take()
    }

    /// Whether an entry is being changed in place.
    pub(super) fn is_inside(&self) -> bool {
        self.inside.get() != 0
    }
}

/// A table whose accesses are written down.
pub(super) struct Logged<'a, M> {
    pub(super) name: &'static str,
    pub(super) table: &'a M,
    pub(super) log: &'a Log,
}

impl<M> Logged<'_, M> {
    fn log(&self, op: Op) {
        self.log.write(Access::Table(self.name, op));
    }
}

impl<K, V: Copy, M: Table<K, V>> Table<K, V> for Logged<'_, M> {
    fn get(&self, key: &K) -> Option<V> {
        self.log(Op::Get);
        self.table.get(key)
    }

    fn update<R>(&self, key: &K, change: impl FnOnce(&mut V) -> R) -> Option<R> {
        self.log(Op::Update);
        let inside = &self.log.inside;
        inside.set(inside.get() + 1);
        let changed = self.table.update(key, change);
        inside.set(inside.get() - 1);
        changed
    }

    fn insert(&self, key: &K, value: &V) -> Result<(), InsertError> {
        self.log(Op::Insert);
        self.table.insert(key, value)
    }

    fn remove(&self, key: &K) -> bool {
        self.log(Op::Remove);
        self.table.remove(key)
    }
}
