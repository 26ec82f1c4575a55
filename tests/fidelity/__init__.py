"""Nothing is lost either way: conversion and rollback held against a model, row by row and file by file."""
