// Classify image files with a bundle: Go over the C API.
//
//	CGO_CFLAGS=-I.../include CGO_LDFLAGS="-L... -lcascade" go run classify.go BUNDLE IMAGE...
package main

/*
#include <cascade/cascade.h>
#include <stdlib.h>
*/
import "C"

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"
)

// check turns a status into an error; the goroutine stays on the thread that has its text.
func check(status C.cascade_status) error {
	if status == C.CASCADE_OK {
		return nil
	}
	return fmt.Errorf("%s", C.GoString(C.cascade_last_error()))
}

func classify(session *C.cascade_session, path string) (string, error) {
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	image := C.cascade_file(name)
	var result C.cascade_result
	result.struct_size = C.sizeof_cascade_result
	if err := check(C.cascade_classify(session, &image, 1, &result)); err != nil {
		return "", err
	}
	switch {
	case result.status == C.CASCADE_IMAGE:
		return "unreadable: " + C.GoString(&result.message[0]), nil
	case result.decision < 0:
		return "deferred: " + C.GoString(C.cascade_reason_text(result.reason)), nil
	}
	class := C.GoString(C.cascade_class_name(session, result.decision))
	return fmt.Sprintf("%s, p %.4f, stage %d", class, float64(result.p), int(result.stage)), nil
}

func run(bundle string, paths []string) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	place := C.CString(bundle)
	defer C.free(unsafe.Pointer(place))
	var session *C.cascade_session
	if err := check(C.cascade_open(place, nil, &session)); err != nil {
		return err
	}
	defer C.cascade_close(session)
	for _, path := range paths {
		answer, err := classify(session, path)
		if err != nil {
			return err
		}
		fmt.Printf("%s: %s\n", path, answer)
	}
	return nil
}

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintf(os.Stderr, "usage: %s BUNDLE IMAGE...\n", os.Args[0])
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}
