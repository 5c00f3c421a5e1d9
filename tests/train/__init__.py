"""Tests of curvverify/train."""
