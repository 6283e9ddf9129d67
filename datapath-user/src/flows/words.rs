//! Enums that are words to people and programs.

/// Declares an enum the variants of which are words, in JSON, on the command line and in tables.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident($what:literal, $rule:literal) {
        $($(#[$variant_meta:meta])* $variant:ident = $word:literal,)*
    }) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize,
            serde::Deserialize,
        )]
        pub enum $name {
            $($(#[$variant_meta])* #[serde(rename = $word)] $variant,)*
        }

        impl $name {
            /// All there are.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The word for it.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.word())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::Error;

            fn from_str(text: &str) -> Result<Self, $crate::Error> {
                let mut all = Self::ALL.iter().copied();
                all.find(|one| one.word().eq_ignore_ascii_case(text))
                    .ok_or_else(|| $crate::Error::Invalid {
                        what: $what,
                        value: text.to_owned(),
                        rule: $rule,
                    })
            }
        }
    };
}

pub(super) use words;
