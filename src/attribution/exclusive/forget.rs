//! What is forgotten when a name is given to another kind, or route.

use super::super::names::Name;
use super::Exclusive;
use super::route::Route;

impl Exclusive {
    /// A name is given to another kind.
    pub(in crate::attribution) fn forget_kind(&mut self, kind: Name) {
        if let Some(known) = self.kinds.get_mut(usize::from(kind)) {
            *known = None;
        }
        for route in &mut self.routes {
            route.calls.retain(|calls| calls.kind != kind);
        }
        if let Some(only) = &mut self.only {
            only.calls.retain(|(known, _, _)| *known != kind);
        }
    }

    /// A name is given to another route.
    pub(in crate::attribution) fn forget_route(&mut self, route: Name) {
        if let Some(route) = self.routes.get_mut(usize::from(route)) {
            *route = Route::default();
        }
    }
}
