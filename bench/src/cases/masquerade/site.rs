//! Labs that are built when they are needed, and end with the last contest in them.

use std::{cell::RefCell, rc::Rc};

use super::{
    lab::{Lab, Shape},
    variant::Variant,
};
use crate::{error::Result, machine::Machine};

/// Flows that a datapath has room for by default.
const USUAL_ROOM: u32 = 1 << 16;

/// A lab that is built when it is first needed, and shared by contests.
#[derive(Clone, Debug)]
pub(super) struct Site {
    shape: Shape,
    lab: Rc<RefCell<Option<Rc<Lab>>>>,
}

impl Site {
    pub(super) fn new(shape: Shape) -> Self {
        Self {
            shape,
            lab: Rc::default(),
        }
    }

    pub(super) fn variant(&self) -> Variant {
        self.shape.variant
    }

    /// The lab, built now if it is not there yet.
    pub(super) fn lab(&self, machine: &mut Machine) -> Result<Rc<Lab>> {
        let mut lab = self.lab.borrow_mut();
        if let Some(lab) = lab.as_ref() {
            return Ok(Rc::clone(lab));
        }
        let built = Rc::new(Lab::build(self.shape, machine)?);
        *lab = Some(Rc::clone(&built));
        Ok(built)
    }
}

/// The sites of a run.
#[derive(Debug, Default)]
pub(super) struct Sites {
    known: Vec<Site>,
}

impl Sites {
    /// The one with a table as it is by default, where so many flows fit into that, or else of just
    /// this size: in a larger table the same flows are further apart.
    pub(super) fn with_room(&mut self, variant: Variant, flows: u32) -> Site {
        self.of(Shape::new(variant, flows.max(USUAL_ROOM)))
    }

    /// The one of this shape.
    pub(super) fn of(&mut self, shape: Shape) -> Site {
        if let Some(site) = self.known.iter().find(|site| site.shape == shape) {
            return site.clone();
        }
        let site = Site::new(shape);
        self.known.push(site.clone());
        site
    }
}
