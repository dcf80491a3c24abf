// Package certfile follows the files of a certificate, its key and its CA, which
// somebody may replace while they are in use. It decides; reading them and taking
// them into use is the daemons'.
package certfile

import (
	"io/fs"
	"os"
	"time"
)

const (
	// Poll is between looks whether the files have changed: certificates live for
	// months, and a look is three calls of stat.
	Poll = 30 * time.Second
	// Patience is how long files may not fit together until that is said: whoever
	// writes them needs moments for all three.
	Patience = time.Minute
)

// Marks tell the content of a certificate's, a key's and a CA's file from others
// without reading them. A file that is not there has the zero mark.
type Marks [3]mark

type mark struct {
	modified time.Time
	size     int64
	mode     fs.FileMode // a file may become readable
}

// MarksOf looks at the files. Who reads them looks first: what changes while it is
// read is then seen the next time.
func MarksOf(certificate, key, ca string) (m Marks) {
	for i, path := range []string{certificate, key, ca} {
		if info, err := os.Stat(path); err == nil {
			m[i] = mark{info.ModTime(), info.Size(), info.Mode()}
		}
	}
	return m
}

// Watch decides when files are read and what is said of them. Its zero value has
// not seen any. It is one goroutine's.
type Watch struct {
	taken   Marks
	problem string
	since   time.Time
	said    bool
}

// Due reports whether files with these marks are to be read: they are others than
// those taken last, or those before them were refused, or somebody has asked.
func (w *Watch) Due(m Marks, asked bool) bool {
	return asked || w.problem != "" || m != w.taken
}

// Taken notes that the files are in use, or those in use are the same, and reports
// whether it was said before that they are not.
func (w *Watch) Taken(m Marks) (mended bool) {
	mended = w.said
	*w = Watch{taken: m}
	return mended
}

// Refused notes why the files are not taken and reports whether that is to be said
// now: once, and not while they may be half written, unless somebody has asked.
func (w *Watch) Refused(now time.Time, why error, asked bool) (say bool) {
	if w.problem == "" {
		w.since = now
	}
	w.problem = why.Error()
	say = asked || !w.said && now.Sub(w.since) >= Patience
	w.said = w.said || say
	return say
}

// Problem is why newer files are not in use, empty as long as that is not said.
func (w *Watch) Problem() string {
	if !w.said {
		return ""
	}
	return w.problem
}
