package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// screen writes to a terminal with colours, to anything else without.
type screen struct {
	io.Writer
	colours bool
}

// newScreen respects NO_COLOR (https://no-color.org).
func newScreen(f *os.File) screen {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return screen{Writer: f, colours: err == nil && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}

var colourCodes = map[tone]string{good: "32", bad: "31", faint: "2", strong: "1"}

func (s screen) paint(t tone, text string) string {
	code := colourCodes[t]
	if !s.colours || code == "" || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (s screen) printf(format string, args ...any) { fmt.Fprintf(s, format, args...) }

func (s screen) heading(text string) { s.printf("\n%s\n\n", s.paint(strong, text)) }

// cell is one field of a table.
type cell struct {
	text string
	tone tone
}

// table prints rows with their columns lined up; the first row is the heading.
func (s screen) table(rows [][]cell) {
	var widths []int
	for _, row := range rows {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, c := range row {
			line.WriteString("  " + s.paint(c.tone, c.text))
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text)))
			}
		}
		s.printf("%s\n", line.String())
	}
}

// millis is a duration in milliseconds, with a decimal where it matters.
func millis(d time.Duration) string {
	if d < 10*time.Millisecond {
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%d ms", d.Round(time.Millisecond).Milliseconds())
}
