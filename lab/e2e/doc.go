// Package e2e tests Isthmus as a person uses it: the built programs, in a lab that is started for the tests, through the
// commands of the guide. It holds nothing but tests.
//
// The programs are taken from $ISTHMUS_BIN, by default from the repository's bin/. Without them the tests are skipped,
// and fail when CI=true. Other variables:
//
//	ISTHMUS_E2E_LONG=1     outages last a minute instead of half of one
//	ISTHMUS_E2E_DIR=PATH   keep the lab of this state directory up between runs, for work on the tests themselves
package e2e
