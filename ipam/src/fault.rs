//! The error inside a transaction, which does not yet know whose it is.

use std::path::Path;

use crate::error::{Inconsistency, IpamError};

/// A failure inside a transaction, before it is known which store and operation it belongs to.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The request cannot be met. Nothing has been written.
    Refused(IpamError),
    /// The engine failed.
    Engine(redb::Error),
    /// A record cannot be read.
    Record {
        record: String,
        source: serde_json::Error,
    },
    /// Records contradict one another.
    Inconsistent(Inconsistency),
}

impl Fault {
    /// Names the store and the operation.
    pub(crate) fn named(self, operation: &'static str, path: &Path) -> IpamError {
        let path = path.to_owned();
        match self {
            Self::Refused(error) => error,
            Self::Engine(error) => IpamError::Storage {
                operation,
                path,
                source: Box::new(error),
            },
            Self::Record { record, source } => IpamError::Record {
                path,
                record,
                source,
            },
            Self::Inconsistent(inconsistency) => IpamError::Inconsistent {
                path,
                inconsistency,
            },
        }
    }
}

impl From<IpamError> for Fault {
    fn from(error: IpamError) -> Self {
        Self::Refused(error)
    }
}

impl From<Inconsistency> for Fault {
    fn from(inconsistency: Inconsistency) -> Self {
        Self::Inconsistent(inconsistency)
    }
}

/// The engine has an error type per kind of call, and one that takes them all.
impl<E: Into<redb::Error>> From<E> for Fault {
    fn from(error: E) -> Self {
        Self::Engine(error.into())
    }
}
