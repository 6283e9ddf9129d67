//! Changing the size of a flow table while flows go on.
//!
//! A map cannot be resized, so there are two for a while: the pin of the former one is renamed, the
//! loader makes a new one in its place, and the programs that take over look into both (`resizing`
//! in their read-only data). [Sweeping](crate::Datapath::sweep_slice) moves the entries; when there
//! are none left, programs that know of one map only take over, and the former one goes.
//!
//! At whatever step this process ends, the pins tell the next one where to go on:
//!
//! | pins | then |
//! |---|---|
//! | the former, and no new one | nobody uses a new one yet: it is given its name back |
//! | both | programs for both are loaded, and entries are moved |
//! | one | there is nothing to do, or to begin |

use std::fs;
use std::path::Path;

use datapath_kern::abi::flow::resizing;

use super::Node;
use crate::bpffs::Pins;
use crate::config::Config;
use crate::error::Error;
use crate::flows::{self, Tables, Which, capacity};

/// The tables that can be resized, with their bits in the programs.
const RESIZABLE: [(Which, u32); 2] = [
    (Which::Flows, resizing::FLOWS),
    (Which::Pending, resizing::PENDING),
];

/// Gives former tables their names back, where an earlier process ended before there was a new one.
///
/// # Errors
///
/// [`Error::File`].
pub(crate) fn undo_unbegun(pins: &Pins) -> Result<(), Error> {
    let maps = pins.maps();
    for (which, _) in RESIZABLE {
        let (pin, former) = (maps.join(which.map()), maps.join(which.former().map()));
        if former.exists() && !pin.exists() {
            fs::rename(&former, pin).map_err(Error::file("rename the pinned", former))?;
        }
    }
    Ok(())
}

/// Bits of the tables that have a former one by their pins.
pub(crate) fn bits(maps: &Path) -> u32 {
    let is_filled = |which: Which| maps.join(which.former().map()).exists();
    let filled = RESIZABLE.into_iter().filter(|(which, _)| is_filled(*which));
    filled.fold(0, |bits, (_, bit)| bits | bit)
}

impl Node {
    /// Puts tables aside that are not of the size that is wanted, for the loader to make new ones; a
    /// table that is being filled is left alone until it has all. Says whether there are any.
    ///
    /// # Errors
    ///
    /// [`Error::Map`], [`Error::File`].
    pub(super) fn begin_resize(&mut self) -> Result<bool, Error> {
        let maps = self.pins.maps();
        let mut begun = false;
        for (which, bit) in RESIZABLE {
            let wanted = match which {
                Which::Flows => self.sizes.max_flows,
                _ => self.sizes.max_pending,
            };
            let Some(table) = self.maps.tables.get(which) else {
                continue;
            };
            let found = capacity(table).map_err(Error::map("look at", which.map()))?;
            if found == wanted || bits(&maps) & bit != 0 {
                continue;
            }
            let (pin, former) = (maps.join(which.map()), maps.join(which.former().map()));
            fs::rename(&pin, &former).map_err(Error::file("rename the pinned", pin))?;
            tracing::info!(table = which.map(), found, wanted, "flow table resized");
            begun = true;
        }
        Ok(begun)
    }

    /// Opens the tables again, once there may be others.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub(super) fn reopen_tables(&mut self) -> Result<(), Error> {
        self.maps.tables = Tables::open(&self.pins.maps())?;
        self.sweeper.restart();
        Ok(())
    }

    /// Lets former tables go that have been emptied, and begins with what is still to be resized
    /// then. To be called now and then; it is quick where there is nothing to do, and takes the time
    /// that the verifier takes where there is.
    ///
    /// # Errors
    ///
    /// As [`Datapath::open`](crate::Datapath::open); the next call goes on.
    pub(crate) fn resize_on(&mut self, config: &Config) -> Result<(), Error> {
        if !self.maps.tables.are_filled() {
            return Ok(());
        }
        for (which, _) in RESIZABLE {
            if flows::count(&self.maps.tables, which.former())? > 0 {
                return Ok(());
            }
        }
        // Nothing is entered into them any more, so they stay empty.
        self.renew_programs(config, 0)?;
        for (which, _) in RESIZABLE {
            let former = self.pins.maps().join(which.former().map());
            if former.exists() {
                fs::remove_file(&former).map_err(Error::file("unpin", former))?;
            }
        }
        self.reopen_tables()?;
        tracing::info!("flows moved into the resized table");
        if self.begin_resize()? {
            self.renew_programs(config, bits(&self.pins.maps()))?;
            self.reopen_tables()?;
        }
        Ok(())
    }
}
