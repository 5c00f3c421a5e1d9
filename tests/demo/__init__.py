"""Tests of curvverify/demo."""
