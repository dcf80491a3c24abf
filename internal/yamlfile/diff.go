package yamlfile

import (
	"fmt"
	"log/slog"
	"reflect"
	"strconv"
)

// Change is a key of two configurations that differs. The values are in words
// for a log; a configuration names the files that hold secrets, never secrets.
type Change struct {
	Key           string // as in the file: probe.rate
	Before, After string
}

// Diff lists what differs between two structs of one type, whose fields have yaml
// tags, in the order of the fields.
func Diff(before, after any) []Change {
	return diff(reflect.ValueOf(before), reflect.ValueOf(after), "")
}

func diff(before, after reflect.Value, prefix string) []Change {
	var changes []Change
	for i := range before.NumField() {
		b, a := before.Field(i), after.Field(i)
		key := prefix + before.Type().Field(i).Tag.Get("yaml")
		if b.Kind() == reflect.Struct {
			changes = append(changes, diff(b, a, key+".")...)
			continue
		}
		if !same(b, a) {
			changes = append(changes, Change{Key: key, Before: inFile(b), After: inFile(a)})
		}
	}
	return changes
}

// same compares as the file does: no list is an empty one.
func same(b, a reflect.Value) bool {
	if b.Kind() == reflect.Slice && b.Len() == 0 && a.Len() == 0 {
		return true
	}
	return reflect.DeepEqual(b.Interface(), a.Interface())
}

// inFile is a value much as it stands in the file.
func inFile(v reflect.Value) string {
	if v.Kind() == reflect.String && v.Len() == 0 {
		return strconv.Quote("")
	}
	return fmt.Sprint(v.Interface())
}

// LogChanges logs what a configuration file that was read again has changed: was is
// what was in force, running what is now, and what else the file says has to wait.
func LogChanges(log *slog.Logger, was, running, file any) {
	now, later := Diff(was, running), Diff(running, file)
	for _, c := range now {
		log.Info("configuration changed", "key", c.Key, "before", c.Before, "after", c.After)
	}
	for _, c := range later {
		log.Warn("configuration changed: takes effect at the next start", "key", c.Key, "before", c.Before, "after", c.After)
	}
	if len(now)+len(later) == 0 {
		log.Info("configuration read again: nothing has changed")
	}
}
