// Classify image files with a bundle: Rust over the C API, with no crate at all.
//
//     rustc -L BUILD -l cascade classify.rs && ./classify BUNDLE IMAGE...
//
// The structures are those of cascade.h, field for field.
use std::ffi::{c_char, c_void, CStr, CString};
use std::process::exit;
use std::ptr::{null, null_mut};

const FILE: i32 = 0;
const UNREADABLE: i32 = 5;

#[repr(C)]
struct Image {
    struct_size: usize,
    kind: i32,
    format: i32,
    path: *const c_char,
    data: *const c_void,
    size: usize,
    width: u32,
    height: u32,
    stride: usize,
    chroma: *const c_void,
    chroma_size: usize,
    chroma_stride: usize,
}

#[repr(C)]
struct Answer {
    struct_size: usize,
    status: i32,
    decision: i32,
    reason: i32,
    stage: i32,
    set: u32,
    reserved: u32,
    p: f64,
    score: f64,
    message: [c_char; 256],
}

#[link(name = "cascade")]
extern "C" {
    fn cascade_open(path: *const c_char, options: *const c_void, session: *mut *mut c_void) -> i32;
    fn cascade_close(session: *mut c_void);
    fn cascade_classify(
        session: *const c_void,
        images: *const Image,
        count: usize,
        results: *mut Answer,
    ) -> i32;
    fn cascade_class_name(session: *const c_void, label: i32) -> *const c_char;
    fn cascade_reason_text(reason: i32) -> *const c_char;
    fn cascade_last_error() -> *const c_char;
}

fn text(pointer: *const c_char) -> String {
    // Sound: the library gives zero-terminated text that lives longer than this copy takes.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

fn check(status: i32) -> Result<(), (i32, String)> {
    if status == 0 {
        return Ok(());
    }
    Err((status, text(unsafe { cascade_last_error() })))
}

struct Session(*mut c_void);

impl Session {
    fn open(path: &str) -> Result<Session, (i32, String)> {
        let path = CString::new(path).expect("no zero in a path");
        let mut session = null_mut();
        check(unsafe { cascade_open(path.as_ptr(), null(), &mut session) })?;
        Ok(Session(session))
    }

    fn classify(&self, path: &str) -> Result<String, (i32, String)> {
        let path = CString::new(path).expect("no zero in a path");
        let mut image: Image = unsafe { std::mem::zeroed() };
        image.struct_size = std::mem::size_of::<Image>();
        image.kind = FILE;
        image.path = path.as_ptr();
        let mut answer: Answer = unsafe { std::mem::zeroed() };
        answer.struct_size = std::mem::size_of::<Answer>();
        check(unsafe { cascade_classify(self.0, &image, 1, &mut answer) })?;
        Ok(if answer.status == UNREADABLE {
            format!("unreadable: {}", text(answer.message.as_ptr()))
        } else if answer.decision < 0 {
            format!("deferred: {}", text(unsafe { cascade_reason_text(answer.reason) }))
        } else {
            let class = text(unsafe { cascade_class_name(self.0, answer.decision) });
            format!("{class}, p {:.4}, stage {}", answer.p, answer.stage)
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        unsafe { cascade_close(self.0) }
    }
}

fn run(arguments: &[String]) -> Result<(), (i32, String)> {
    let session = Session::open(&arguments[1])?;
    for path in &arguments[2..] {
        println!("{path}: {}", session.classify(path)?);
    }
    Ok(())
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.len() < 3 {
        eprintln!("usage: {} BUNDLE IMAGE...", arguments[0]);
        exit(2);
    }
    if let Err((status, message)) = run(&arguments) {
        eprintln!("{}: {message}", arguments[1]);
        exit(status);
    }
}
