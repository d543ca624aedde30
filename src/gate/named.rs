//! How each person is named to the backends: the lines of a head, remembered by one worker.
//!
//! A remembered token brings the same [`Principal`] with every request, so its lines are made once. Bounded; held by the
//! configuration that they were made from, so a reload forgets them.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use crate::config::IdentityHeader;
use crate::message::identity;
use crate::policy::{Pass, Principal};

/// A power of two. People whose addresses in memory fall together take turns.
const PLACES: usize = 1024;

/// One worker's memory of the lines.
#[derive(Default)]
pub(super) struct Named(RefCell<Vec<Option<Place>>>);

struct Place {
    /// Kept alive, so that no other person can get the same address.
    person: Arc<Principal>,
    lines: Rc<[u8]>,
}

impl Named {
    /// The lines that name the person of a permission; none where nobody is logged in.
    pub(super) fn lines(&self, ours: &[IdentityHeader], pass: &Pass) -> Rc<[u8]> {
        let Some(person) = pass.person() else { return Rc::default() };
        let mut places = self.0.borrow_mut();
        if places.is_empty() {
            places.resize_with(PLACES, || None);
        }
        // Sixteen bytes are the least that two allocations are apart.
        let index = (Arc::as_ptr(person).addr() >> 4) % PLACES;
        match places.get(index) {
            Some(Some(place)) if Arc::ptr_eq(&place.person, person) => Rc::clone(&place.lines),
            _ => {
                let lines: Rc<[u8]> = identity::lines(ours, person).into();
                if let Some(place) = places.get_mut(index) {
                    *place = Some(Place { person: Arc::clone(person), lines: Rc::clone(&lines) });
                }
                lines
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;
    use crate::config::{Access, TemplatePart};
    use crate::policy::{Caller, Policy, Unidentified, decide};

    fn pass(caller: &Caller) -> Pass {
        decide(&Policy { access: Access::Optional, groups: Vec::new(), users: Vec::new() }, caller).unwrap()
    }

    fn person(username: &str) -> Caller {
        Caller::Person(Arc::new(Principal {
            id: String::from("1"),
            username: username.to_owned(),
            groups: Vec::new(),
            email: String::new(),
            display_name: String::new(),
        }))
    }

    #[test]
    fn everybody_has_lines_of_his_own_however_many_there_are() {
        let ours = [IdentityHeader {
            name: HeaderName::from_static("x-forwarded-user"),
            template: vec![TemplatePart::Username],
        }];
        let named = Named::default();
        let people: Vec<Caller> = (0..3 * PLACES).map(|number| person(&format!("user{number}"))).collect();
        for _ in 0..2 {
            for (number, caller) in people.iter().enumerate() {
                let expected = format!("X-Forwarded-User: user{number}\r\n");
                assert_eq!(&*named.lines(&ours, &pass(caller)), expected.as_bytes());
            }
        }
        let kim = person("kim");
        assert!(Rc::ptr_eq(&named.lines(&ours, &pass(&kim)), &named.lines(&ours, &pass(&kim))));
        assert!(named.lines(&ours, &pass(&Caller::Anonymous(Unidentified::NoCredential))).is_empty());
        assert_eq!(named.0.borrow().len(), PLACES);
    }
}
