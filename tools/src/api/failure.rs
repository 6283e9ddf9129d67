//! What goes over the wire when something cannot be done.

use std::{error::Error, fmt};

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

/// Why a request was not carried out: `{"error": "...", "causes": ["...", ...]}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What sort of failure it is; the status code stands for it.
    #[serde(skip)]
    pub kind: Kind,
    /// What was tried, and on what.
    pub error: String,
    /// Why it failed, the nearest cause first.
    #[serde(default)]
    pub causes: Vec<String>,
}

/// Sort of a [`Failure`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request makes no sense: 400.
    Invalid,
    /// The process at the other end may not ask: 403.
    Forbidden,
    /// There is no such thing: 404.
    Missing,
    /// The thing is there, but does not do this: 405.
    Method,
    /// It clashes with what is there: 409.
    Conflict,
    /// The request is too long: 413.
    TooLong,
    /// The agent failed at it: 500.
    #[default]
    Internal,
    /// There is no room left for it: 507 (RFC 4918 section 11.5).
    Exhausted,
}

impl Failure {
    /// Takes an error with all its sources.
    pub fn new(kind: Kind, error: &(dyn Error + 'static)) -> Self {
        let mut causes = Vec::new();
        let mut source = error.source();
        while let Some(cause) = source {
            causes.push(cause.to_string());
            source = cause.source();
        }
        Self {
            kind,
            error: error.to_string(),
            causes,
        }
    }

    /// Takes a sentence.
    pub fn of(kind: Kind, error: impl Into<String>) -> Self {
        Self {
            kind,
            error: error.into(),
            causes: Vec::new(),
        }
    }
}

/// The error and its causes in one line, a cause that its error has already told left out.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)?;
        let mut told = &self.error;
        for cause in &self.causes {
            if !told.ends_with(cause.as_str()) {
                write!(f, ": {cause}")?;
            }
            told = cause;
        }
        Ok(())
    }
}

impl Error for Failure {}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.kind.status(), Json(self)).into_response()
    }
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Invalid,
        Self::Forbidden,
        Self::Missing,
        Self::Method,
        Self::Conflict,
        Self::TooLong,
        Self::Internal,
        Self::Exhausted,
    ];

    /// Returns the status code that stands for it.
    #[must_use]
    pub const fn status(self) -> StatusCode {
        match self {
            Self::Invalid => StatusCode::BAD_REQUEST,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::Missing => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict => StatusCode::CONFLICT,
            Self::TooLong => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Exhausted => StatusCode::INSUFFICIENT_STORAGE,
        }
    }

    /// Returns what a status code stands for; one that none has is [`Kind::Internal`].
    #[must_use]
    pub fn of_status(status: StatusCode) -> Self {
        let found = Self::ALL.into_iter().find(|kind| kind.status() == status);
        found.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_the_wire() {
        for kind in Kind::ALL {
            assert_eq!(Kind::of_status(kind.status()), kind);
        }
        assert_eq!(Kind::of_status(StatusCode::IM_A_TEAPOT), Kind::Internal);
    }

    #[test]
    fn a_cause_is_told_once() {
        let failure = Failure {
            causes: vec!["b".to_owned(), "b".to_owned(), "c".to_owned()],
            ..Failure::of(Kind::Internal, "a")
        };
        assert_eq!(failure.to_string(), "a: b: c");
        let failure = Failure {
            causes: vec!["b".to_owned()],
            ..Failure::of(Kind::Internal, "a: b")
        };
        assert_eq!(failure.to_string(), "a: b");
    }
}
