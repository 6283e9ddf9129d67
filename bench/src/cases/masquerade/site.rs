//! Labs that are built when they are needed, and end with the last contest in them.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use super::{
    lab::{Lab, Shape},
    variant::Variant,
};
use serde_json::json;

use crate::{contest::Entry, error::Result, machine::Machine, uplink::Uplink};

/// Flows that a datapath has room for by default.
const USUAL_ROOM: u32 = 1 << 16;

/// What ours on one site is measured against, by a name: another variant, or itself without rules.
pub(in crate::cases) fn against(ours: &Site, theirs: &Site) -> &'static str {
    if ours.variant() == theirs.variant() {
        "no-rules"
    } else {
        theirs.variant().name()
    }
}

/// A lab, while there is one.
type Slot = Rc<RefCell<Option<Rc<Lab>>>>;

/// A network card that the sites of a run have in turn.
#[derive(Debug)]
struct Card {
    uplink: Uplink,
    /// Whose lab has it.
    holder: RefCell<Option<Slot>>,
}

/// A lab that is built when it is first needed, and shared by contests.
#[derive(Clone, Debug)]
pub(in crate::cases) struct Site {
    shape: Shape,
    card: Option<Rc<Card>>,
    /// Whether a lab of this shape has shown that sockets get through it.
    checked: Rc<Cell<bool>>,
    lab: Slot,
}

impl Site {
    fn new(shape: Shape, card: Option<Rc<Card>>) -> Self {
        Self {
            shape,
            card,
            checked: Rc::default(),
            lab: Rc::default(),
        }
    }

    /// Whether no other site has a lab while this one has: there is one network card for all. Nobody
    /// may hold a lab of another site then when this one's is asked for.
    pub(in crate::cases) fn is_alone(&self) -> bool {
        self.card.is_some()
    }

    pub(in crate::cases) fn variant(&self) -> Variant {
        self.shape.variant
    }

    /// It in a report, with this traffic.
    pub(in crate::cases) fn entry(&self, pattern: &'static str, flows: u32) -> Entry {
        let params = [("pattern", json!(pattern)), ("flows", json!(flows))];
        let mut entry = Entry::new(self.variant().name(), params);
        if let Some(rules) = self.shape.rules {
            entry.params.insert("rules", json!(rules));
        }
        entry
    }

    /// The lab, built now if it is not there yet.
    pub(in crate::cases) fn lab(&self, machine: &mut Machine) -> Result<Rc<Lab>> {
        let mut lab = self.lab.borrow_mut();
        if let Some(lab) = lab.as_ref() {
            return Ok(Rc::clone(lab));
        }
        let mut uplink = None;
        if let Some(card) = &self.card {
            let last = card.holder.replace(Some(Rc::clone(&self.lab)));
            if let Some(last) = last.filter(|last| !Rc::ptr_eq(last, &self.lab)) {
                last.replace(None);
            }
            if !self.checked.replace(true) {
                // Nobody is there to talk to sockets beyond the card: on the lab's own wire there is.
                drop(Lab::build(self.shape, None, &mut Machine::look()?)?);
            }
            uplink = Some(&card.uplink);
        }
        let built = Rc::new(Lab::build(self.shape, uplink, machine)?);
        *lab = Some(Rc::clone(&built));
        Ok(built)
    }
}

/// The sites of a run.
#[derive(Debug)]
pub(in crate::cases) struct Sites {
    known: Vec<Site>,
    card: Option<Rc<Card>>,
}

impl Sites {
    /// Sites on a network card, if there is one.
    pub(in crate::cases) fn on(uplink: Option<&Uplink>) -> Self {
        let card = uplink.map(|uplink| Card {
            uplink: uplink.clone(),
            holder: RefCell::default(),
        });
        Self {
            known: Vec::new(),
            card: card.map(Rc::new),
        }
    }

    /// The one with a table as it is by default, where so many flows fit into that, or else of just
    /// this size: in a larger table the same flows are further apart.
    pub(in crate::cases) fn with_room(&mut self, variant: Variant, flows: u32) -> Site {
        self.of(Shape::new(variant, flows.max(USUAL_ROOM)))
    }

    /// The one of this shape.
    pub(in crate::cases) fn of(&mut self, shape: Shape) -> Site {
        if let Some(site) = self.known.iter().find(|site| site.shape == shape) {
            return site.clone();
        }
        let site = Site::new(shape, self.card.clone());
        self.known.push(site.clone());
        site
    }
}
