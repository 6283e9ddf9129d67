//! How a bench is run.

use datapath_conformance::family::Family;

use crate::{
    error::{Error, Result},
    uplink::Uplink,
};

/// How a bench is run. Each case uses what concerns it.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Labs that are built, one after the other. Where the kernel puts what it allocates differs from
    /// lab to lab, and what a packet costs with it, by some percent.
    pub labs: usize,
    /// Rounds that have to count, in each lab.
    pub rounds: usize,
    /// Rounds before, which do not.
    pub warm_up: usize,
    /// Frames of one sample, in cases with made-up frames.
    pub packets: u32,
    /// Numbers of flows that these are spread over, at random; none: what the case measures
    /// unless told.
    pub flows: Vec<u32>,
    /// What it is measured against, of what the case offers; none: all of it.
    pub against: Vec<String>,
    /// Which of the case's patterns of traffic are measured; none: all, or those that `flows`
    /// concern.
    pub patterns: Vec<String>,
    /// Numbers of rules that `policy` is measured with; none: what the case measures unless told.
    pub rules: Vec<u32>,
    /// Bytes of one sample of `stream`, MiB.
    pub mebibytes: u32,
    /// Round trips of one sample of `pingpong`.
    pub round_trips: u32,
    /// The pods' family in cases about sockets, and in `cpus`.
    pub family: Family,
    /// The underlay's family.
    pub underlay: Family,
    /// Above this part of all CPUs, from 0 to 1, used by somebody else, a round does not count.
    pub max_foreign_share: f64,
    /// A network card to measure on instead of the lab's own wire, in cases that
    /// [can](crate::contest::Case::takes_uplink).
    pub uplink: Option<Uplink>,
}

/// Most flows that any case can spread frames over.
const MAX_FLOWS: u32 = 1 << 20;
/// Most rules that `policy` can make up.
const MAX_RULES: u32 = 60_000;

impl Default for Options {
    fn default() -> Self {
        Self {
            labs: 1,
            rounds: 20,
            warm_up: 2,
            packets: 400_000,
            flows: Vec::new(),
            against: Vec::new(),
            patterns: Vec::new(),
            rules: Vec::new(),
            mebibytes: 64,
            round_trips: 20_000,
            family: Family::Ipv4,
            underlay: Family::Ipv4,
            max_foreign_share: 0.1,
            uplink: None,
        }
    }
}

impl Options {
    /// As little of everything as shows that it works: one round, no statement about speed.
    #[must_use]
    pub fn smoke() -> Self {
        Self {
            rounds: 1,
            warm_up: 0,
            packets: 2048,
            flows: vec![7],
            rules: vec![3],
            mebibytes: 4,
            round_trips: 50,
            max_foreign_share: 1.0,
            ..Self::default()
        }
    }

    /// Checks the numbers.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for the first that cannot be used.
    pub fn check(&self) -> Result<()> {
        let numbers = [
            ("labs", self.labs, 1..=1000),
            ("rounds", self.rounds, 1..=10_000),
            ("packets", self.packets as usize, 64..=100_000_000),
            ("mebibytes", self.mebibytes as usize, 1..=65_536),
            ("round-trips", self.round_trips as usize, 1..=100_000_000),
        ];
        let flows = self.flows.iter();
        let flows = flows.map(|&flows| ("flows", flows as usize, 1..=MAX_FLOWS as usize));
        let rules = self.rules.iter();
        let rules = rules.map(|&rules| ("rules", rules as usize, 2..=MAX_RULES as usize));
        for (what, value, range) in numbers.into_iter().chain(flows).chain(rules) {
            if !range.contains(&value) {
                let rule = "labs: 1 to 1000; rounds: 1 to 10000; packets: 64 to 100000000; flows: 1 to \
                            1048576; rules: 2 to 60000; mebibytes: 1 to 65536; round-trips: 1 to 100000000";
                let value = value.to_string();
                return Err(Error::Invalid { what, value, rule });
            }
        }
        if !(0.0..=1.0).contains(&self.max_foreign_share) {
            return Err(Error::Invalid {
                what: "max-foreign",
                value: self.max_foreign_share.to_string(),
                rule: "a part of all CPUs, from 0 to 1",
            });
        }
        Ok(())
    }

    /// The one number of flows of a case that opens each with a socket: 255 unless told.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for several numbers, and for more than 4000.
    pub fn few_flows(&self) -> Result<u16> {
        let few = match *self.flows {
            [] => Some(255),
            [flows] => u16::try_from(flows).ok().filter(|&flows| flows <= 4000),
            _ => None,
        };
        few.ok_or_else(|| Error::Invalid {
            what: "flows",
            value: list(&self.flows),
            rule: "this case takes one number, 1 to 4000",
        })
    }
}

fn list(numbers: &[u32]) -> String {
    let numbers: Vec<_> = numbers.iter().map(ToString::to_string).collect();
    numbers.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_of_sockets_takes_one_number_of_flows() {
        let few = |flows: &[u32]| {
            let flows = flows.to_vec();
            Options {
                flows,
                ..Options::default()
            }
            .few_flows()
        };
        assert_eq!((few(&[]).unwrap(), few(&[9]).unwrap()), (255, 9));
        for flows in [&[4001][..], &[1, 2]] {
            assert!(few(flows).unwrap_err().to_string().contains("flows"));
        }
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused() {
        Options::default().check().unwrap();
        Options::smoke().check().unwrap();
        let bad = [
            Options {
                rounds: 0,
                ..Options::default()
            },
            Options {
                flows: vec![255, 0],
                ..Options::default()
            },
            Options {
                max_foreign_share: f64::NAN,
                ..Options::default()
            },
        ];
        for options in bad {
            assert!(options.check().is_err(), "{options:?}");
        }
    }
}
