//! What goes over the wire when the datapath, the address store or the agent fails.

use datapath_ipam::IpamError;
use datapath_user::Error as DatapathError;

use crate::{
    api::{Failure, Kind},
    error::Error,
};

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(failure) => failure,
            Error::Datapath(error) => error.into(),
            Error::Ipam(error) => error.into(),
            other => Self::new(Kind::Internal, &other),
        }
    }
}

impl From<DatapathError> for Failure {
    fn from(error: DatapathError) -> Self {
        let kind = match &error {
            DatapathError::Setting { .. } | DatapathError::Invalid { .. } => Kind::Invalid,
            DatapathError::NotFound { .. } | DatapathError::NoSuchEnd { .. } => Kind::Missing,
            DatapathError::Exists { .. } | DatapathError::AddressInUse { .. } => Kind::Conflict,
            DatapathError::Full { .. } => Kind::Exhausted,
            _ => Kind::Internal,
        };
        Self::new(kind, &error)
    }
}

impl From<IpamError> for Failure {
    fn from(error: IpamError) -> Self {
        let kind = match &error {
            IpamError::NotInPool { .. }
            | IpamError::NoSuchFamily { .. }
            | IpamError::RequestShape { .. }
            | IpamError::InvalidName { .. } => Kind::Invalid,
            IpamError::AlreadyAllocated { .. }
            | IpamError::InUse { .. }
            | IpamError::Reserved { .. }
            | IpamError::CoolingDown { .. } => Kind::Conflict,
            IpamError::Exhausted { .. } => Kind::Exhausted,
            _ => Kind::Internal,
        };
        Self::new(kind, &error)
    }
}
