//! Two filters that do nothing, by configuration. Without any, no callback is
//! overridden: Envoy calls all of them all the same, and a context is made and dropped
//! for each request. With `reads`, the headers of each request are fetched, as one map
//! of bytes, and dropped unread: the least that a filter costs which looks at all.

use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType, MapType, Status};

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_get_header_map_pairs(map: MapType, data: *mut *mut u8, size: *mut usize) -> Status;
}

#[derive(Default)]
struct Root {
    reads: bool,
}
struct Empty;
struct Reads;

proxy_wasm::main! {{
    proxy_wasm::set_root_context(|_| -> Box<dyn RootContext> { Box::new(Root::default()) });
}}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _: usize) -> bool {
        self.reads = self.get_plugin_configuration().as_deref() == Some(b"reads");
        true
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(match self.reads {
            true => Box::new(Reads),
            false => Box::new(Empty),
        })
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

impl Context for Empty {}
impl HttpContext for Empty {}

impl Context for Reads {}
impl HttpContext for Reads {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        let (mut data, mut size) = (core::ptr::null_mut(), 0);
        // The SDK's own call makes a string of each name and value.
        let status = unsafe {
            proxy_get_header_map_pairs(MapType::HttpRequestHeaders, &mut data, &mut size)
        };
        assert!(status == Status::Ok && !data.is_null());
        drop(unsafe { Vec::from_raw_parts(data, size, size) });
        Action::Continue
    }
}
